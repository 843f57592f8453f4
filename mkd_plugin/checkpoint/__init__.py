"""Loading weights: right, or with a reason why not.

``load``: a ViT from a file, strictly. ``read``: a file, without running what is in it. ``student``: a whole student.
"""

from mkd_plugin.checkpoint.load import LoadReport, load_backbone
from mkd_plugin.checkpoint.read import read_checkpoint

__all__ = ['LoadReport', 'load_backbone', 'read_checkpoint']
