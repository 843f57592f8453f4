"""Files and configs, shared by all rooms."""
