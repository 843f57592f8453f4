"""Heads, H in the unified view: from student tokens to predictions of the target."""

from mkd_plugin.models.heads.base import Head
from mkd_plugin.models.heads.decoder import TransformerDecoder
from mkd_plugin.models.heads.neck import NeckHead
from mkd_plugin.models.heads.pointwise import LinearHead, NoHead, ProjectorHead
from mkd_plugin.models.heads.relation import RegroupedRelations

__all__ = ['Head', 'LinearHead', 'NeckHead', 'NoHead', 'ProjectorHead', 'RegroupedRelations', 'TransformerDecoder']
