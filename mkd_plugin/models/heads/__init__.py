"""Heads, H in the equation: from student tokens to predictions of the target."""

from mkd_plugin.models.heads.decoder import NeckHead, TransformerDecoder
from mkd_plugin.models.heads.pointwise import LinearHead, NoHead, ProjectorHead, RegroupedRelations

__all__ = ['LinearHead', 'NeckHead', 'NoHead', 'ProjectorHead', 'RegroupedRelations', 'TransformerDecoder']
