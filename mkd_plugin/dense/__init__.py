"""Dense prediction with mmdet and mmseg, neither of which is imported here: the ViT as their backbone, and their pyramids."""

from mkd_plugin.dense.dense_vit import DenseViT
from mkd_plugin.dense.pyramid import ScalePyramid, SimplePyramid

__all__ = ['DenseViT', 'ScalePyramid', 'SimplePyramid']
