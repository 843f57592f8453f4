# mmpretrain's runtime; checkpoints that weights_only loading accepts and that name their network.
_base_ = 'mmpretrain::_base_/default_runtime.py'

default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2),
    portable=dict(type='mkd_plugin.PortableCheckpointHook'),
)
randomness = dict(seed=0, diff_rank_seed=True)
