"""A head for token relations between networks of different numbers of heads."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from mkd_plugin.models.heads.base import Head
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import QueryKey, RegionTokens, TokenFeatures


@MODELS.register_module()
class RegroupedRelations(Head):
    """The student's relations with its queries and keys cut into as many heads as the teacher has (as MiniLM v2 does).

    For a student whose number of heads differs from the teacher's. Nothing is learned: head j of the teacher is compared
    with the relation over the j-th group of the student's channels. Relations over other numbers of channels differ in
    scale; use the taps ``logit:i``, which divide by √K on both sides, with it.

    Raises:
        ValueError: When the first batch comes: the student's width is not a multiple of the teacher's number of heads.
    """

    kinds = ('relation',)

    def forward(self, features: TokenFeatures, tap: str, region: RegionTokens) -> Tensor:
        """(B, H of the teacher, R, R)."""
        relation = features.taps[tap]
        assert isinstance(relation, QueryKey)
        return replace(features, taps={tap: relation.regroup(self.out_width)}).select(tap, region)
