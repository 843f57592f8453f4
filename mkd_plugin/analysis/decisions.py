"""Decisions of classifiers: shape bias on cue-conflict images, and error consistency of two observers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import nan

import torch
from torch import Tensor

from mkd_plugin.analysis.streaming import check_finite


def coarse_probabilities(logits_BC: Tensor, classes: Mapping[str, Sequence[int]]) -> Tensor:
    """Softmax over all C classes, then the mean probability of each coarse class, (B, len(classes)).

    ``classes`` maps a coarse class to the ids of its fine classes, as the 16 classes of Geirhos et al. (2019). Raises
    ValueError if a coarse class is empty, an id is out of range or in two coarse classes, or a logit is not finite.
    """
    check_finite(logits_BC, 'logits')
    ids = [index for members in classes.values() for index in members]
    empty = [name for name, members in classes.items() if not members]
    outside = sorted({index for index in ids if not 0 <= index < logits_BC.shape[1]})
    if not classes or empty or outside or len(set(ids)) < len(ids):
        twice = sorted({index for index in ids if ids.count(index) > 1})
        raise ValueError(
            f'Each coarse class needs at least one fine class, and each id from 0 to {logits_BC.shape[1] - 1} may be in one '
            f'coarse class only. Empty: {empty}; out of range: {outside}; in two classes: {twice}.'
        )
    probabilities_BC = logits_BC.double().softmax(dim=1)
    return torch.stack([probabilities_BC[:, list(members)].mean(dim=1) for members in classes.values()], dim=1)


def coarse_decisions(logits_BC: Tensor, classes: Mapping[str, Sequence[int]]) -> list[str]:
    """The most probable coarse class of each image; see :func:`coarse_probabilities`."""
    names = list(classes)
    return [names[index] for index in coarse_probabilities(logits_BC, classes).argmax(dim=1).tolist()]


@dataclass(frozen=True)
class ShapeBiasSummary:
    """Decisions on cue-conflict images."""

    shape: int  #: decisions for the class of the shape
    texture: int  #: decisions for the class of the texture
    other: int  #: other decisions
    dropped: int  #: images without a conflict, which are not counted
    by_class: dict[str, float]  #: class of the shape → bias on its images; NaN without decisions for shape or texture

    @property
    def bias(self) -> float:
        """shape / (shape + texture); NaN without such decisions."""
        return share(self.shape, self.texture)


@dataclass
class ShapeBias:
    """Shape bias, streamed over batches."""

    _rows: dict[str, list[int]] = field(default_factory=dict)  # class of the shape → [shape, texture, other]
    _dropped: int = 0

    def update(self, decided: Sequence[str], shapes: Sequence[str], textures: Sequence[str]) -> None:
        """Add decisions with the two classes of each image. Raises ValueError if the lengths differ."""
        check_lengths(decided, shapes, textures)
        for decision, shape, texture in zip(decided, shapes, textures, strict=True):
            if shape == texture:
                self._dropped += 1
                continue
            place = 0 if decision == shape else 1 if decision == texture else 2
            self._rows.setdefault(shape, [0, 0, 0])[place] += 1

    def result(self) -> ShapeBiasSummary:
        """Return the counts over all images so far. Raises ValueError if no image had a cue conflict."""
        if not self._rows:
            raise ValueError('Shape bias needs images whose shape and texture have different classes; there was none.')
        shape, texture, other = (sum(column) for column in zip(*self._rows.values(), strict=True))
        by_class = {name: share(row[0], row[1]) for name, row in sorted(self._rows.items())}
        return ShapeBiasSummary(shape, texture, other, self._dropped, by_class)


@dataclass
class ErrorConsistency:
    """Cohen's κ of the correctness of two observers (Geirhos et al. 2020), streamed over batches.

    κ = (c_obs − c_exp) / (1 − c_exp): 1 if both err on the same images, 0 if they agree as often as by chance.
    """

    _counts: list[int] = field(default_factory=lambda: [0, 0, 0, 0])  # images by (first right, second right)

    def update(self, first_right: Iterable[bool], second_right: Iterable[bool]) -> None:
        """Add whether each observer was right on the same images. Raises ValueError if the lengths differ."""
        first, second = [bool(right) for right in first_right], [bool(right) for right in second_right]
        check_lengths(first, second)
        for one, other in zip(first, second, strict=True):
            self._counts[2 * one + other] += 1

    def _shares(self) -> list[float]:
        images = sum(self._counts)
        if not images:
            raise ValueError('Error consistency needs at least one image.')
        return [count / images for count in self._counts]

    def observed(self) -> float:
        """Return c_obs, the share of images on which both are right or both wrong. Raises ValueError without images."""
        return self._shares()[0] + self._shares()[3]

    def result(self) -> float:
        """Return κ; NaN if both are always right or both always wrong. Raises ValueError if there was no image."""
        _, only_second, only_first, both_right = self._shares()
        first, second = only_first + both_right, only_second + both_right
        expected = first * second + (1 - first) * (1 - second)
        return nan if expected == 1 else (self.observed() - expected) / (1 - expected)


def share(part: int, rest: int) -> float:
    """part / (part + rest), or NaN if both are zero."""
    return part / (part + rest) if part + rest else nan


def check_lengths(*columns: Sequence[object]) -> None:
    """Raise ValueError unless all columns have the same length."""
    if len({len(column) for column in columns}) > 1:
        raise ValueError(f'Give one entry per image: the lengths are {[len(column) for column in columns]}.')
