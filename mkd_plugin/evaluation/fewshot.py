"""Few-shot classification: a linear head on frozen features, trained on k labelled images per class."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mkd_plugin.evaluation.features import Feature, Features
from mkd_plugin.evaluation.linear import ProbeSettings, train_probes

SHOTS = (2, 4, 8, 16, 32)
FEW = ProbeSettings(rates=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0), epochs=100)


@dataclass(frozen=True)
class FewShot:
    """Accuracy with k labels per class."""

    shots: int  #: k
    rate: float  #: Learning rate with the best mean accuracy, for a batch of 256
    mean: float  #: Mean top-1 accuracy over the draws, per cent
    std: float  #: Sample standard deviation over the draws; 0 for one draw
    draws: tuple[float, ...]  #: Top-1 accuracy of each draw


def draw_shots(labels_N: Tensor, shots: int, draw: int) -> Tensor:
    """Draw the rows of ``shots`` images per class. Raises ValueError if a class has fewer.

    The same (shots, draw) gives the same rows, and a draw with fewer labels is a subset of the one with more.
    """
    counts = torch.bincount(labels_N)
    least = int(counts[counts > 0].min())
    if not 1 <= shots <= least:
        raise ValueError(f'k={shots} labels per class: the smallest class has {least} images, so k can be 1 … {least}.')
    generator = torch.Generator().manual_seed(draw)
    rows = []
    for label in counts.nonzero().flatten():
        members = (labels_N == label).nonzero().flatten()
        rows.append(members[torch.randperm(len(members), generator=generator)[:shots]])
    return torch.cat(rows)


def few_shot(
    train: Features,
    val: Features,
    feature: Feature,
    *,
    shots: int,
    draws: int = 3,
    settings: ProbeSettings = FEW,
    device: str | torch.device = 'cpu',
) -> FewShot:
    """Train heads of all learning rates on ``shots`` labels per class, once for each draw; evaluate them on all validation
    images.

    Raises ValueError if a class has fewer images, or all heads diverged.
    """
    if draws < 1:
        raise ValueError(f'draws={draws}: give at least 1.')
    val = Features({feature: val.values[feature]}, val.labels_N)
    rows = []
    for draw in range(draws):
        drawn = draw_shots(train.labels_N, shots, draw)
        subset = Features({feature: train.values[feature][drawn]}, train.labels_N[drawn])
        rows.append([head.top1 for head in train_probes(subset, val, settings, device=device)])
    return best_rate(shots, settings.rates, rows)


def best_rate(shots: int, rates: Sequence[float], rows: Sequence[Sequence[float]]) -> FewShot:
    """Choose the rate with the best mean over draws, among those that never diverged."""
    columns = dict(zip(rates, zip(*rows, strict=True), strict=True))
    means = {rate: statistics.fmean(column) for rate, column in columns.items()}
    stable = {rate: mean for rate, mean in means.items() if not math.isnan(mean)}
    if not stable:
        raise ValueError(f'Every learning rate diverged in some draw. Give smaller rates than {tuple(rates)}.')
    rate = max(stable, key=stable.__getitem__)
    top1 = columns[rate]
    return FewShot(shots, rate, means[rate], statistics.stdev(top1) if len(top1) > 1 else 0.0, tuple(top1))
