"""Heads, H in the equation: predict the target from student tokens."""

from mkd_plugin.models.heads.decoder import NeckHead, TransformerDecoder
from mkd_plugin.models.heads.pointwise import LinearHead, NoHead, ProjectorHead, RegroupedRelations

__all__ = ['LinearHead', 'NeckHead', 'NoHead', 'ProjectorHead', 'RegroupedRelations', 'TransformerDecoder']
