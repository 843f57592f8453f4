"""Everything that is read, checked and adapted before a run: configs, data, devices, process groups, the dry run.

None of it is needed to train: every config also runs with the hosts' own tools.
"""
