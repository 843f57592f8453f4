"""Linear centred kernel alignment between layers, of one network or of two (Kornblith et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mkd_plugin.analysis.checks import check_finite
from mkd_plugin.analysis.streaming import CrossScatter


def linear_cka(x_NC: Tensor, y_NE: Tensor) -> float:
    """‖Yᵀ X‖² / (‖Xᵀ X‖ ‖Yᵀ Y‖) of centred features, Frobenius norms: 1 for a rotated or uniformly scaled copy.

    Raises:
        ValueError: As :class:`LinearCKA`.
    """
    cka = LinearCKA()
    cka.update({'x': x_NC}, {'y': y_NE})
    return float(cka.result().values_RS[0, 0])


@dataclass(frozen=True)
class SimilarityTable:
    """CKA of every pair of layers.

    Attributes:
        rows: Layers of the first network.
        columns: Layers of the second; the same as ``rows`` within one network.
        values_RS: 0 … 1, float64.
        examples: How many were compared.
    """

    rows: list[str]
    columns: list[str]
    values_RS: Tensor
    examples: int


class LinearCKA:
    """Linear CKA of all pairs of layers, streamed over batches: any split gives what all examples at once give.

    It keeps one cross-covariance a pair (within one network, a pair only once) in float64: 4.7 MB for two widths of 768.
    What an example is — an image's mean token, its cls, or every token — is the caller's choice; with fewer examples than
    channels CKA is biased upwards.
    """

    def __init__(self) -> None:
        self._cross: dict[tuple[str, str], CrossScatter] = {}
        self._own: tuple[dict[str, CrossScatter], dict[str, CrossScatter]] = ({}, {})
        self._within: bool | None = None

    def update(self, first: Mapping[str, Tensor], second: Mapping[str, Tensor] | None = None) -> None:
        """Take a batch.

        Args:
            first: Layer → features of the same examples, each (N, its width).
            second: Likewise of another network; None to compare the layers of the first with each other.

        Raises:
            ValueError: The numbers of examples differ, the layers are not those of earlier batches, or features are not
                finite.
        """
        self._check(first, second)
        columns = first if second is None else second
        for side, layers in zip(self._own, (first, second or {}), strict=True):
            for name, x_NC in layers.items():
                side.setdefault(name, CrossScatter()).update(x_NC, x_NC)
        for i, (row, x_NC) in enumerate(first.items()):
            for j, (column, y_NE) in enumerate(columns.items()):
                if second is not None or i < j:
                    self._cross.setdefault((row, column), CrossScatter()).update(x_NC, y_NE)

    def result(self) -> SimilarityTable:
        """The table over all examples so far.

        Raises:
            ValueError: Fewer than two examples, or a layer whose features do not vary.
        """
        first, second = self._own
        rows, columns = list(first), list(first if self._within else second)
        examples = next(iter(first.values())).examples if first else 0
        if examples < 2:
            raise ValueError(f'CKA needs at least two examples, got {examples}. Call update with more of them.')
        norms = [{name: self._own_norm(name, found) for name, found in side.items()} for side in self._own]
        norms_of_columns = norms[0 if self._within else 1]
        table = [[self._cross_norm(row, column) for column in columns] for row in rows]
        scale = [[norms[0][row] * norms_of_columns[column] for column in columns] for row in rows]
        values_RS = torch.tensor(table, dtype=torch.float64) / torch.tensor(scale, dtype=torch.float64)
        return SimilarityTable(rows, columns, values_RS, examples)

    def _cross_norm(self, row: str, column: str) -> float:
        """‖Yᵀ X‖²."""
        if self._within and row == column:
            found = self._own[0][row]
        else:
            pair = (row, column) if (row, column) in self._cross else (column, row)
            found = self._cross[pair]
        assert found.scatter_CE is not None
        return float(found.scatter_CE.square().sum())

    @staticmethod
    def _own_norm(name: str, found: CrossScatter) -> float:
        """‖Xᵀ X‖."""
        assert found.scatter_CE is not None
        norm = float(found.scatter_CE.norm())
        if norm == 0:
            raise ValueError(
                f'{name}: the features are the same for all examples, so they have no similarity to anything.'
            )
        return norm

    def _check(self, first: Mapping[str, Tensor], second: Mapping[str, Tensor] | None) -> None:
        named = [*first.items(), *(second or {}).items()]
        counts = {len(x_NC) for _, x_NC in named}
        if len(counts) != 1 or any(x_NC.dim() != 2 for _, x_NC in named):
            shapes = {name: tuple(x_NC.shape) for name, x_NC in named}
            raise ValueError(f'CKA needs features (N, width) of the same N examples at every layer, got {shapes}.')
        layers = [list(first), list(second or {})]
        known = [list(side) for side in self._own]
        if self._within is not None and (self._within != (second is None) or layers != known):
            raise ValueError(f'CKA: the layers of this batch are {layers}, those of earlier ones {known}.')
        for name, x_NC in named:
            check_finite(x_NC, name)
        self._within = second is None
