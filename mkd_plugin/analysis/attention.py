"""Attention distance, entropy, and normalised mutual information (NMI) of queries and keys.

Attention is given after the softmax, (B, H, queries, keys), with prefix tokens (cls first) before the patches in row-major
order. All values are computed per image and head. Two public conventions of the distance exist: *cl-vs-mim* renormalises the
rows after dropping the prefix tokens; *dbot* does not, so attention to cls counts as distance 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, prod

import torch
from torch import Tensor

from mkd_plugin.analysis.streaming import FLAVOURS, ImageMean, check_finite, widen

DISTANCE_EPS = 1e-32  # the public code's, before rows are renormalised
NMI_EPS = 1e-8


def patch_distances(grid: tuple[int, int], patch_size: int) -> Tensor:
    """Distances in pixels between the centres of all pairs of patches, (L, L) float64."""
    places_L2 = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in grid)) * patch_size
    return (places_L2[:, None] - places_L2).norm(dim=2)


def attention_distance(patches_BHLL: Tensor, distances_LL: Tensor, *, flavour: str) -> Tensor:
    """Mean distance in pixels between a query and what it attends to, (B, H); 'cl-vs-mim' renormalises rows."""
    if flavour == 'cl-vs-mim':
        patches_BHLL = renormalise(patches_BHLL, DISTANCE_EPS)
    return (patches_BHLL * distances_LL.to(patches_BHLL)).sum(dim=-1).mean(dim=-1)


def attention_entropy(patches_BHLL: Tensor) -> Tensor:
    """−Σ_k A ln A of renormalised rows, mean over queries, nats, (B, H)."""
    return torch.special.entr(renormalise(patches_BHLL, DISTANCE_EPS)).sum(dim=-1).mean(dim=-1)


def attention_nmi(patches_BHLL: Tensor) -> Tensor:
    """Normalised mutual information of query and key positions, (B, H); 0 if all queries attend alike (collapse).

    MI / √(H(q) H(k)) with p(q) = 1/L, and MI = H(k) − H(k | q).
    """
    joint = renormalise(patches_BHLL, NMI_EPS)
    keys_BH = torch.special.entr(joint.mean(dim=-2)).sum(dim=-1)
    given_query_BH = torch.special.entr(joint).sum(dim=-1).mean(dim=-1)
    return (keys_BH - given_query_BH) / (keys_BH * log(joint.shape[-1])).sqrt()


def renormalise(patches_BHLL: Tensor, eps: float) -> Tensor:
    """Rescale rows to sum to one after adding ``eps`` to each entry, so that an empty row becomes uniform."""
    raised = patches_BHLL + eps
    return raised / raised.sum(dim=-1, keepdim=True)


@dataclass(frozen=True)
class AttentionSummary:
    """Attention statistics of one layer, means over images in float64."""

    flavour: str  #: convention of the distance; the other values are the same in both
    distance_H: Tensor  #: pixels
    entropy_H: Tensor  #: nats
    entropy_fraction_H: Tensor  #: divided by the maximum, ln L
    nmi_H: Tensor  #: 0 (collapse) … 1
    images: int


class AttentionStatistics:
    """Distance, entropy and NMI of one layer, streamed over batches.

    ``flavour`` is 'cl-vs-mim' or 'dbot', ``patch_size`` is in pixels, ``name`` names the layer in messages. Prefix tokens
    are dropped as queries and as keys. Raises ValueError for another flavour, or a grid of one patch.
    """

    def __init__(
        self, *, grid: tuple[int, int], patch_size: int, flavour: str, num_prefix: int = 1, name: str = 'attention'
    ) -> None:
        if flavour not in FLAVOURS:
            raise ValueError(f'flavour={flavour!r}: use one of {list(FLAVOURS)}.')
        if prod(grid) < 2:
            raise ValueError(f'grid={grid}: attention between patches needs at least two patches. Use smaller patches.')
        self.grid, self.num_prefix, self.flavour, self.name = grid, num_prefix, flavour, name
        self._distances_LL = patch_distances(grid, patch_size)
        self._mean = ImageMean(name=name)

    def update(self, attention_BHNN: Tensor, /) -> None:
        """Add a batch. Raises ValueError if it does not fit the grid, is not finite, or is not attention after softmax."""
        self._check(attention_BHNN)
        self._distances_LL = self._distances_LL.to(attention_BHNN.device)
        patches_BHLL = attention_BHNN[:, :, self.num_prefix :, self.num_prefix :]
        for patches_HLL in patches_BHLL:  # one image at a time, to keep temporaries small
            patches_1HLL = widen(patches_HLL[None])
            values = [
                attention_distance(patches_1HLL, self._distances_LL, flavour=self.flavour),
                attention_entropy(patches_1HLL),
                attention_nmi(patches_1HLL),
            ]
            self._mean.update(torch.stack(values, dim=1))

    def result(self) -> AttentionSummary:
        """Return the means over all images so far. Raises ValueError if there was none."""
        distance_H, entropy_H, nmi_H = self._mean.result()
        fraction_H = entropy_H / log(prod(self.grid))
        return AttentionSummary(self.flavour, distance_H, entropy_H, fraction_H, nmi_H, self._mean.images)

    def _check(self, attention_BHNN: Tensor) -> None:
        length = self.num_prefix + prod(self.grid)
        if attention_BHNN.dim() != 4 or attention_BHNN.shape[2:] != (length, length):
            raise ValueError(
                f'{self.name}: attention must have the shape (B, H, {length}, {length}) for {self.num_prefix} prefix tokens '
                f'and a grid of {self.grid[0]} × {self.grid[1]}, got {tuple(attention_BHNN.shape)}. Give the grid and the '
                'number of prefix tokens of this network at this image size.'
            )
        check_finite(attention_BHNN, self.name)
        if attention_BHNN.numel() and (attention_BHNN.amin() < 0 or attention_BHNN.sum(dim=-1).amax() > 1.05):
            raise ValueError(
                f'{self.name}: negative entries, or rows that sum to more than 1. Give attention after softmax.'
            )
