"""Maskings: choose the patches that are hidden from the student."""

from mkd_plugin.models.masking.block import BlockMasking
from mkd_plugin.models.masking.blocks import ExactBlockMasking, InverseBlockMasking, MultiBlockMasking
from mkd_plugin.models.masking.guided import AttentionMasking, RedundancyMasking
from mkd_plugin.models.masking.random import NoMasking, RandomMasking
from mkd_plugin.models.masking.sampled import DisjointMasks, IntactAndMasked, SampledMasking, SeveralMasks

__all__ = [
    'AttentionMasking',
    'BlockMasking',
    'DisjointMasks',
    'ExactBlockMasking',
    'IntactAndMasked',
    'InverseBlockMasking',
    'MultiBlockMasking',
    'NoMasking',
    'RandomMasking',
    'RedundancyMasking',
    'SampledMasking',
    'SeveralMasks',
]
