# mmpretrain's runtime, with checkpoints that load with weights_only and describe their network, exact resume of killed
# runs, and a record of each run.
_base_ = ['mmpretrain::_base_/default_runtime.py', 'run.py']

default_hooks = dict(
    _base_.run_hooks, checkpoint=dict(type='mkd_plugin.AtomicCheckpointHook', interval=1, max_keep_ckpts=2))
visualizer = _base_.run_visualizer
randomness = dict(seed=0, diff_rank_seed=True)
