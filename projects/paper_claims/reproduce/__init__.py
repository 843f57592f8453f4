"""The parts of reproduce_shapes.py: which runs, how they are run, what is claimed, and the page about it."""
