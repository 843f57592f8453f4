"""What the command-line tools share: arguments, process groups, the dry run, what a checkpoint holds.

Nothing of it is needed to train: every config also runs with the hosts' own tools.
"""
