"""The one Vision Transformer that student, teacher and dense backbone are thin users of."""

from mkd_plugin.models.vit.arch import Arch, resolve_arch
from mkd_plugin.models.vit.block import Block
from mkd_plugin.models.vit.embed import cut_patches
from mkd_plugin.models.vit.positions import sincos_positions
from mkd_plugin.models.vit.taps import Tap, parse_tap
from mkd_plugin.models.vit.vit import VisionTransformer

__all__ = ['Arch', 'Block', 'Tap', 'VisionTransformer', 'cut_patches', 'parse_tap', 'resolve_arch', 'sincos_positions']
