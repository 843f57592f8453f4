"""What makes the plugin run on the installed hosts."""
