"""Whole networks and other libraries: open any checkpoint as a model, convert, export and inspect files."""
