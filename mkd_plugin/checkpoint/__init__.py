"""Loading weights: right, or with a reason why not.

``load``: a ViT from a file of any known format, strictly. ``formats``: which formats are known, a table each. ``read``: a
file, without running what is in it. ``convert``: from file to file, checked against ``libraries``. ``releases``: the
teachers of the papers. ``student``: a whole student.
"""

from mkd_plugin.checkpoint.load import load_backbone
from mkd_plugin.checkpoint.read import read_checkpoint
from mkd_plugin.checkpoint.report import LoadReport

__all__ = ['LoadReport', 'load_backbone', 'read_checkpoint']
