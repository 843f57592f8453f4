"""How other libraries and repositories name a ViT's tensors, one table a format, usable forwards and backwards."""

from mkd_plugin.checkpoint.formats.detect import (
    COMPILED,
    FORMATS,
    Found,
    find_network,
    find_networks,
    without_wrapper,
)
from mkd_plugin.checkpoint.formats.rules import Converted, Format, Rule

__all__ = [
    'COMPILED',
    'FORMATS',
    'Converted',
    'Format',
    'Found',
    'Rule',
    'find_network',
    'find_networks',
    'without_wrapper',
]
