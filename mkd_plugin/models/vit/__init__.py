"""The Vision Transformer shared by students, teachers and the dense backbones."""

from mkd_plugin.models.vit.block import Arch, Block, resolve_arch
from mkd_plugin.models.vit.embeddings import cut_patches, sincos_positions
from mkd_plugin.models.vit.taps import Tap, parse_tap
from mkd_plugin.models.vit.vit import VisionTransformer

__all__ = ['Arch', 'Block', 'Tap', 'VisionTransformer', 'cut_patches', 'parse_tap', 'resolve_arch', 'sincos_positions']
