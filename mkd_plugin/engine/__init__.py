"""What changes state while a run goes on: stages, momentum teachers, checkpoints, exact resume."""

from mkd_plugin.engine.atomic_checkpoint import AtomicCheckpointHook
from mkd_plugin.engine.exact_resume import ExactResumeHook
from mkd_plugin.engine.finite_loss import FiniteLossHook
from mkd_plugin.engine.momentum import MomentumHook
from mkd_plugin.engine.portable_checkpoint import PortableCheckpointHook
from mkd_plugin.engine.preemption import PreemptionHook
from mkd_plugin.engine.stages import StageHook

__all__ = [
    'AtomicCheckpointHook',
    'ExactResumeHook',
    'FiniteLossHook',
    'MomentumHook',
    'PortableCheckpointHook',
    'PreemptionHook',
    'StageHook',
]
