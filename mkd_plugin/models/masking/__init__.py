"""Maskings: choose the patches that are hidden from the student."""

from mkd_plugin.models.masking.block import BlockMasking
from mkd_plugin.models.masking.guided import AttentionMasking, RedundancyMasking
from mkd_plugin.models.masking.random import NoMasking, RandomMasking

__all__ = ['AttentionMasking', 'BlockMasking', 'NoMasking', 'RandomMasking', 'RedundancyMasking']
