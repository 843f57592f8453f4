"""Loading weights: right, or with a reason why not."""

from mkd_plugin.checkpoint.load import load_backbone
from mkd_plugin.checkpoint.read import read_checkpoint
from mkd_plugin.checkpoint.student import LoadedStudent, load_student

__all__ = ['LoadedStudent', 'load_backbone', 'load_student', 'read_checkpoint']
