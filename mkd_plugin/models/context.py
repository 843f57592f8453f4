"""What the surrounding model tells the components it builds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from mkd_plugin.models.vit import VisionTransformer

if TYPE_CHECKING:
    from mkd_plugin.models.masking.base import Masking
    from mkd_plugin.models.teachers.base import Teacher


@dataclass(frozen=True)
class StudentContext:
    """The student, as teachers and maskings need to know it.

    Attributes:
        network: The student itself, for teachers that copy it.
        pixel_mean: Per channel, of the images the student gets, in units of the stored image (0 … 255).
        pixel_std: Likewise.
    """

    network: VisionTransformer
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per column and row."""
        return self.network.grid

    @property
    def num_patches(self) -> int:
        """L."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class DistillContext:
    """Everything an objective is checked against when it is built."""

    student: StudentContext
    teachers: Mapping[str, Teacher]
    masking: Masking


def pixel_statistics(preprocessor: nn.Module, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of the images a preprocessor makes, per channel, in units of the stored image; 0 and 1 if it does not
    normalise."""
    statistics = []
    for name, default in (('mean', 0.0), ('std', 1.0)):
        value = getattr(preprocessor, name, None)
        values = [default] if value is None else value.flatten().tolist()
        statistics.append(tuple(values * channels if len(values) == 1 else values))
    return statistics[0], statistics[1]
