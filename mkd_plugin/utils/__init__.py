"""Files and configs, used by all packages."""
