"""Few-shot classification: a linear head on a frozen network from k labelled images a class."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mkd_plugin.evaluation.features import Feature, Features
from mkd_plugin.evaluation.linear import ProbeSettings, train_probes
from mkd_plugin.evaluation.progress import Report

SHOTS = (2, 4, 8, 16, 32)
FEW = ProbeSettings(rates=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0), epochs=100)


@dataclass(frozen=True)
class FewShot:
    """Accuracy with k labels a class.

    Attributes:
        shots: k.
        rate: The one of the sweep with the best mean, for a batch of 256.
        mean: Top-1 over the draws, per cent.
        std: Its sample standard deviation; 0 for one draw.
        draws: Of each draw.
    """

    shots: int
    rate: float
    mean: float
    std: float
    draws: tuple[float, ...]


def draw_shots(labels_N: Tensor, shots: int, draw: int) -> Tensor:
    """Rows of ``shots`` images of each class.

    The same (shots, draw) gives the same rows, and a draw with fewer labels is part of the draw with more.

    Raises:
        ValueError: A class has fewer images.
    """
    counts = torch.bincount(labels_N)
    least = int(counts[counts > 0].min())
    if not 1 <= shots <= least:
        raise ValueError(f'k={shots} labels a class: the smallest class has {least} images, so k can be 1 … {least}.')
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
    report: Report | None = None,
) -> FewShot:
    """Train heads of all rates on each draw, and judge them by the whole validation set.

    Args:
        train: Where labelled images are drawn from.
        val: To judge by.
        feature: What the heads read.
        shots: Labels a class.
        draws: How many.
        settings: Of the heads.
        device: Where.
        report: Told the number of finished draws.

    Raises:
        ValueError: A class has fewer images, or all heads diverged.
    """
    if draws < 1:
        raise ValueError(f'draws={draws}: at least 1.')
    judged = Features({feature: val.values[feature]}, val.labels_N)
    rows = []
    for draw in range(draws):
        drawn = draw_shots(train.labels_N, shots, draw)
        subset = Features({feature: train.values[feature][drawn]}, train.labels_N[drawn])
        rows.append([head.top1 for head in train_probes(subset, judged, settings, device=device)])
        if report is not None:
            report(draw + 1)
    return best_rate(shots, settings.rates, rows)


def best_rate(shots: int, rates: Sequence[float], rows: Sequence[Sequence[float]]) -> FewShot:
    """The rate with the best mean over draws, among those that never diverged."""
    columns = dict(zip(rates, zip(*rows, strict=True), strict=True))
    means = {rate: statistics.fmean(column) for rate, column in columns.items()}
    stable = {rate: mean for rate, mean in means.items() if not math.isnan(mean)}
    if not stable:
        raise ValueError(f'Every rate diverged in some draw. Give smaller rates than {tuple(rates)}.')
    rate = max(stable, key=stable.__getitem__)
    top1 = columns[rate]
    return FewShot(shots, rate, means[rate], statistics.stdev(top1) if len(top1) > 1 else 0.0, tuple(top1))
