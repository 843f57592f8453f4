"""Dense prediction with mmdet and mmseg: the ViT as their backbone, and feature pyramids. Imports neither of them."""

from mkd_plugin.dense.dense_vit import DenseViT
from mkd_plugin.dense.pyramid import ScalePyramid, SimplePyramid

__all__ = ['DenseViT', 'ScalePyramid', 'SimplePyramid']
