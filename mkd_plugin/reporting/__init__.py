"""Experiments as jobs, and reports as pages."""
