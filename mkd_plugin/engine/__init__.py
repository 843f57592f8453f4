"""Training: teacher updates, checkpoints and exact resume, guards, metrics, progress, and learning rates by layer."""

from mkd_plugin.engine.attention import AttentionHook
from mkd_plugin.engine.compile import CompileHook
from mkd_plugin.engine.curves import CurvesHook
from mkd_plugin.engine.exact_resume import ExactResumeHook
from mkd_plugin.engine.guards import FiniteLossHook, PreemptionHook, UnusedParametersHook
from mkd_plugin.engine.lazy_scalars import LazyScalarsHook
from mkd_plugin.engine.metrics import MetricsHook
from mkd_plugin.engine.optim import FewGroupsConstructor, FreezeHook, LayerDecayConstructor
from mkd_plugin.engine.progress import ProgressHook
from mkd_plugin.engine.provenance import PortableCheckpointHook
from mkd_plugin.engine.saving import AtomicCheckpointHook
from mkd_plugin.engine.strategies import ShardedStrategy, StrategyRunner
from mkd_plugin.engine.teacher_updates import TeacherUpdateHook

__all__ = [
    'AtomicCheckpointHook',
    'AttentionHook',
    'CompileHook',
    'CurvesHook',
    'ExactResumeHook',
    'FiniteLossHook',
    'FewGroupsConstructor',
    'FreezeHook',
    'LayerDecayConstructor',
    'LazyScalarsHook',
    'MetricsHook',
    'PortableCheckpointHook',
    'PreemptionHook',
    'ProgressHook',
    'ShardedStrategy',
    'StrategyRunner',
    'TeacherUpdateHook',
    'UnusedParametersHook',
]
