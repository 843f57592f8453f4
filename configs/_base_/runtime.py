# mmpretrain's runtime; checkpoints that weights_only loading accepts and that name their network; a run that is killed
# and resumed ends with the same weights; what it did is recorded.
_base_ = ['mmpretrain::_base_/default_runtime.py', 'run.py']

default_hooks = dict(
    _base_.run_hooks, checkpoint=dict(type='mkd_plugin.AtomicCheckpointHook', interval=1, max_keep_ckpts=2))
visualizer = _base_.run_visualizer
randomness = dict(seed=0, diff_rank_seed=True)
