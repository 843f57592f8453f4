"""Read, convert and load weights of a ViT, strictly and without running code in the file.

Start with ``load`` (a state dict into a network) and ``read`` (files); ``formats`` maps the names of other libraries to
ours, and ``releases`` lists the teachers of the papers. Whole networks are built in ``mkd_plugin.interop``.
"""

from mkd_plugin.checkpoint.load import load_backbone
from mkd_plugin.checkpoint.read import CheckpointError, read_checkpoint
from mkd_plugin.checkpoint.report import LoadReport

__all__ = ['CheckpointError', 'LoadReport', 'load_backbone', 'read_checkpoint']
