"""Values that change with the progress of a run: momentum of a teacher, weight of an objective."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from mkd_plugin.models.protocols import Progress
from mkd_plugin.registry import MODELS, build


class Ramp:
    """A value that moves from ``start`` to ``end`` and stays there.

    Args:
        start: Value at the first step.
        end: Value at the end of the ramp.
        steps: Optimiser steps of the ramp; None for the whole run.

    Raises:
        ValueError: ``steps`` is not positive.
    """

    def __init__(self, *, start: float, end: float, steps: int | None = None) -> None:
        if steps is not None and steps < 1:
            raise ValueError(f'steps={steps}: a ramp takes at least one step; None stands for the whole run.')
        self.start, self.end, self.steps = start, end, steps

    def __call__(self, progress: Progress) -> float:
        """Return the value after ``progress.step`` steps."""
        share = progress.share if self.steps is None else min(progress.step / self.steps, 1.0)
        return self.start + (self.end - self.start) * self.shape(share)

    @staticmethod
    def shape(share: float) -> float:
        """Map the share of the ramp that is done to the share of the way that is gone."""
        raise NotImplementedError


@MODELS.register_module()
class LinearRamp(Ramp):
    """A straight line (data2vec's momentum, I-JEPA's)."""

    @staticmethod
    def shape(share: float) -> float:
        """The share itself."""
        return share


@MODELS.register_module()
class CosineRamp(Ramp):
    """Half a cosine (MoCo v3's and DINO's momentum)."""

    @staticmethod
    def shape(share: float) -> float:
        """(1 − cos(π · share)) / 2."""
        return (1 - math.cos(math.pi * share)) / 2


def build_schedule(value: float | dict[str, Any], *, low: float, high: float, name: str) -> Callable[[Progress], float]:
    """Build the schedule of an option that may be a number or the config of a ramp.

    Raises:
        ValueError: A value lies outside [low, high].
    """
    ramp = LinearRamp(start=value, end=value) if isinstance(value, (int, float)) else build(value)
    if not (low <= ramp.start <= high and low <= ramp.end <= high):
        limit = f'in [{low:g}, {high:g}]' if math.isfinite(high) else f'at or above {low:g}'
        raise ValueError(f'{name}={value}: every value must lie {limit}.')
    return ramp
