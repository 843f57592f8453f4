"""Linear centred kernel alignment between layers, of one network or of two (Kornblith et al. 2019)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, product

import torch
from torch import Tensor

from mkd_plugin.analysis.streaming import CrossScatter, check_finite

Layer = tuple[int, str]  # number of the network, name


def linear_cka(x_NC: Tensor, y_NE: Tensor) -> float:
    """‖Yᵀ X‖² / (‖Xᵀ X‖ ‖Yᵀ Y‖) of centred features, Frobenius norms: 1 for a rotated or uniformly scaled copy."""
    cka = LinearCKA()
    cka.update({'x': x_NC}, {'y': y_NE})
    return float(cka.result().values_RS[0, 0])


@dataclass(frozen=True)
class SimilarityTable:
    """CKA of every pair of layers."""

    rows: list[str]  #: layers of the first network
    columns: list[str]  #: layers of the second; the same as ``rows`` within one network
    values_RS: Tensor  #: 0 … 1, float64
    examples: int


class LinearCKA:
    """Linear CKA of all pairs of layers, streamed over batches. The split into batches does not matter.

    Keeps one cross-covariance per pair in float64 (4.7 MB for two widths of 768); within one network, each pair once. The
    caller decides what an example is: the mean token of an image, its cls token, or every token. With fewer examples than
    channels CKA is biased upwards.
    """

    def __init__(self) -> None:
        self._layers: list[list[str]] = []  # of one network or two
        self._scatters: defaultdict[tuple[Layer, Layer], CrossScatter] = defaultdict(CrossScatter)

    def update(self, first: Mapping[str, Tensor], second: Mapping[str, Tensor] | None = None) -> None:
        """Add a batch: layer → features of the same examples, (N, width) each, of one network or of two.

        Raises ValueError if the numbers of examples differ, the layers differ from earlier batches, or a feature is not
        finite.
        """
        sides = [first] if second is None else [first, second]
        self._check(sides)
        features = {(side, name): x_NC for side, layers in enumerate(sides) for name, x_NC in layers.items()}
        if second is None:
            pairs = list(combinations_with_replacement(features, 2))
        else:
            pairs = [(layer, layer) for layer in features] + list(product(*self._sides()))
        for one, other in pairs:
            self._scatters[one, other].update(features[one], features[other])

    def result(self) -> SimilarityTable:
        """The table over all examples so far. Raises ValueError for fewer than two, or a layer whose features do not vary."""
        examples = next(iter(self._scatters.values())).examples if self._scatters else 0
        if examples < 2:
            raise ValueError(f'CKA needs at least two examples, got {examples}. Call update with more of them.')
        rows, columns = self._sides()
        norms = {layer: self._norm(layer, layer) for layer in (*rows, *columns)}
        for (_, name), norm in norms.items():
            if norm == 0:
                raise ValueError(
                    f'{name}: the features are the same for all examples, so their similarity is undefined.'
                )
        table = [[self._norm(row, column) ** 2 / (norms[row] * norms[column]) for column in columns] for row in rows]
        return SimilarityTable(self._layers[0], self._layers[-1], torch.tensor(table, dtype=torch.float64), examples)

    def _sides(self) -> tuple[list[Layer], list[Layer]]:
        """The layers of the rows and of the columns; both are the same within one network."""
        rows, *others = [[(side, name) for name in names] for side, names in enumerate(self._layers)]
        return rows, others[0] if others else rows

    def _norm(self, one: Layer, other: Layer) -> float:
        """‖Yᵀ X‖."""
        pair = (one, other) if (one, other) in self._scatters else (other, one)
        scatter_CE = self._scatters[pair].scatter_CE
        assert scatter_CE is not None
        return float(scatter_CE.norm())

    def _check(self, sides: Sequence[Mapping[str, Tensor]]) -> None:
        named = [item for layers in sides for item in layers.items()]
        counts = {len(x_NC) for _, x_NC in named}
        if len(counts) != 1 or any(x_NC.dim() != 2 for _, x_NC in named):
            shapes = {name: tuple(x_NC.shape) for name, x_NC in named}
            raise ValueError(f'CKA needs features (N, width) of the same N examples at every layer, got {shapes}.')
        layers = [list(side) for side in sides]
        if self._layers and self._layers != layers:
            raise ValueError(f'CKA: the layers of this batch are {layers}, those of earlier ones {self._layers}.')
        for name, x_NC in named:
            check_finite(x_NC, name)
        self._layers = layers
