# The runtime for runs of minutes: fewer checkpoints, a line of log an epoch.
_base_ = 'runtime.py'

default_hooks = dict(checkpoint=dict(interval=10), logger=dict(interval=30))
