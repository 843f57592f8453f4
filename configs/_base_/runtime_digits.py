# Runtime for short runs: fewer checkpoints, one log line per epoch.
_base_ = 'runtime.py'

default_hooks = dict(checkpoint=dict(interval=10), logger=dict(interval=30))
