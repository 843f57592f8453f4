"""Schedules of scalars over a run: a teacher's momentum, an objective's weight."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from mkd_plugin.models.protocols import Progress
from mkd_plugin.registry import MODELS, build


class Ramp:
    """Ramp from ``start`` to ``end``, constant afterwards.

    Args:
        start: Value at the first step.
        end: Value at the end of the ramp.
        steps: Length of the ramp, optimiser steps; None for the whole run.

    Raises:
        ValueError: ``steps`` is not positive.
    """

    def __init__(self, *, start: float, end: float, steps: int | None = None) -> None:
        if steps is not None and steps < 1:
            raise ValueError(f'steps={steps}: it must be at least 1, or None for the whole run.')
        self.start, self.end, self.steps = start, end, steps

    def __call__(self, progress: Progress) -> float:
        """Return the value after ``progress.step`` steps."""
        share = progress.share if self.steps is None else min(progress.step / self.steps, 1.0)
        return self.start + (self.end - self.start) * self.shape(share)

    @staticmethod
    def shape(share: float) -> float:
        """Map the completed share of the ramp to the share of the change."""
        raise NotImplementedError


@MODELS.register_module()
class LinearRamp(Ramp):
    """Linear ramp (momentum of data2vec and I-JEPA)."""

    @staticmethod
    def shape(share: float) -> float:
        """Return the share itself."""
        return share


@MODELS.register_module()
class CosineRamp(Ramp):
    """Half-cosine ramp (momentum of MoCo v3 and DINO)."""

    @staticmethod
    def shape(share: float) -> float:
        """Compute (1 − cos(π · share)) / 2."""
        return (1 - math.cos(math.pi * share)) / 2


def build_schedule(value: float | dict[str, Any], *, low: float, high: float, name: str) -> Callable[[Progress], float]:
    """Build the schedule of a number or of a ramp's config. Raises ValueError for values outside [low, high]."""
    ramp = LinearRamp(start=value, end=value) if isinstance(value, (int, float)) else build(value)
    if not isinstance(ramp, Ramp):
        raise ValueError(f'{name}={value}: give a number, or the config of a ramp, such as LinearRamp.')
    if not (low <= ramp.start <= high and low <= ramp.end <= high):
        limit = f'in [{low:g}, {high:g}]' if math.isfinite(high) else f'at or above {low:g}'
        raise ValueError(f'{name}={value}: every value must be {limit}.')
    return ramp
