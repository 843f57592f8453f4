# mmpretrain's runtime; checkpoints that weights_only loading accepts and that name their network; a run that is killed
# and resumed ends with the same weights.
_base_ = 'mmpretrain::_base_/default_runtime.py'

default_hooks = dict(
    checkpoint=dict(type='mkd_plugin.AtomicCheckpointHook', interval=1, max_keep_ckpts=2),
    portable=dict(type='mkd_plugin.PortableCheckpointHook'),
    exact_resume=dict(type='mkd_plugin.ExactResumeHook'),
    finite_loss=dict(type='mkd_plugin.FiniteLossHook'),
    preemption=dict(type='mkd_plugin.PreemptionHook'),  # SIGTERM, SIGUSR1: save, exit with 85
)
randomness = dict(seed=0, diff_rank_seed=True)
