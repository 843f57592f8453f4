"""Names of a ViT's tensors in other libraries and repositories: one table per format, for import and export."""

from mkd_plugin.checkpoint.formats.detect import DetectedNetwork, find_network, find_networks, strip_compile_prefix
from mkd_plugin.checkpoint.formats.rules import Converted, Format, Rule
from mkd_plugin.checkpoint.formats.tables import EXPORTS, FORMATS

__all__ = [
    'EXPORTS',
    'FORMATS',
    'Converted',
    'DetectedNetwork',
    'Format',
    'Rule',
    'find_network',
    'find_networks',
    'strip_compile_prefix',
]
