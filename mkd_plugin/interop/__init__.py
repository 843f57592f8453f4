"""Networks of other libraries: open any of them, convert, export."""
