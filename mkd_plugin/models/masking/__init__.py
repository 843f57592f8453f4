"""Which patches the student does not see."""

from mkd_plugin.models.masking.attention import AttentionMasking
from mkd_plugin.models.masking.base import Masking
from mkd_plugin.models.masking.block import BlockMasking
from mkd_plugin.models.masking.none import NoMasking
from mkd_plugin.models.masking.random import RandomMasking
from mkd_plugin.models.masking.redundancy import RedundancyMasking

__all__ = ['AttentionMasking', 'BlockMasking', 'Masking', 'NoMasking', 'RandomMasking', 'RedundancyMasking']
