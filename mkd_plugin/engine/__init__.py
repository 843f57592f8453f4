"""What changes state while a run goes on: stages, momentum teachers, what a checkpoint holds."""

from mkd_plugin.engine.momentum import MomentumHook
from mkd_plugin.engine.portable_checkpoint import PortableCheckpointHook
from mkd_plugin.engine.stages import StageHook

__all__ = ['MomentumHook', 'PortableCheckpointHook', 'StageHook']
