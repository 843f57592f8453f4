"""Heads, H in the equation: predict the target from student tokens."""

from mkd_plugin.models.heads.adaptors import LadderHead, ResidualAdaptor
from mkd_plugin.models.heads.codebook import CodebookDecoder
from mkd_plugin.models.heads.cross_attention import ContextRegressor, CrossAttentionDecoder
from mkd_plugin.models.heads.decoder import NeckHead, TransformerDecoder
from mkd_plugin.models.heads.pointwise import LinearHead, NoHead, ProjectorHead, RegroupedRelations
from mkd_plugin.models.heads.predictors import ConvDecoder, TargetPredictor

__all__ = [
    'CodebookDecoder',
    'ContextRegressor',
    'ConvDecoder',
    'CrossAttentionDecoder',
    'LadderHead',
    'LinearHead',
    'NeckHead',
    'NoHead',
    'ProjectorHead',
    'RegroupedRelations',
    'ResidualAdaptor',
    'TargetPredictor',
    'TransformerDecoder',
]
