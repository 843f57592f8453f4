"""Sizes and lengths of the experiment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TASKS = ('detection', 'segmentation')


@dataclass(frozen=True)
class Tuning:
    """A setting of a fine-tuning: a cell of the grid."""

    lr: float  #: Peak learning rate
    decay: float  #: Layer decay
    length: str  #: 'short' or 'long'

    def __str__(self) -> str:
        return f'rate {self.lr:g}, layer decay {self.decay:g}, {self.length}'


@dataclass(frozen=True)
class Settings:
    """Settings that all runs share."""

    counts: Mapping[str, int]  #: Scenes of each split; those of 'train' have no labels but the first ones
    labelled: int  #: The first training scenes, whose labels fine-tunings use
    steps: int  #: Of the pre-training of every start; dBOT divides them into two stages
    teacher_steps: int  #: Of DMAE's larger teacher
    batch: int  #: Images of a step of pre-training
    lengths: Mapping[str, Mapping[str, int]]  #: Task → 'short' and 'long' → steps of a fine-tuning
    scenes: int  #: Of a step of fine-tuning
    rates: Mapping[str, tuple[float, ...]]  #: Task → peak rates of the grid
    decays: tuple[float, ...] = (0.75, 0.85, 1.0)  #: Layer decays of the grid
    seeds: int = 3  #: Seeds of every pre-training, of which the first chooses the settings
    side: int = 64  #: Of a scene, pixels
    crop: int = 48  #: Of a pre-training image, a crop of a scene, pixels
    width: int = 64  #: Of the ViT, which has six blocks and patches of 8 pixels
    decoder: int = 64  #: Width of the decoders, which have two blocks
    points: int = 4  #: Points of a learning curve

    @property
    def arch(self) -> dict[str, int]:
        """Return the architecture of every start."""
        return dict(width=self.width, depth=6, num_heads=4)

    @property
    def large(self) -> dict[str, int]:
        """Return the architecture of DMAE's teacher."""
        return dict(width=2 * self.width, depth=6, num_heads=8)

    def grid(self, task: str) -> list[Tuning]:
        """Return the short settings of a task's grid."""
        return [Tuning(lr, decay, 'short') for lr in self.rates[task] for decay in self.decays]


def settings_of(stored: Mapping[str, Any]) -> Settings:
    """Read settings from a report."""
    rates = {task: tuple(rates) for task, rates in stored['rates'].items()}
    return Settings(**{**stored, 'rates': rates, 'decays': tuple(stored['decays'])})


FULL = Settings(
    counts=dict(train=2000, val=80, test=500),
    labelled=320,
    steps=6000,
    teacher_steps=3000,
    batch=64,
    lengths=dict(detection=dict(short=600, long=900), segmentation=dict(short=1200, long=2400)),
    scenes=8,
    rates=dict(detection=(1e-3, 3e-3), segmentation=(3e-3, 1e-2)),
)
SMOKE = Settings(
    counts=dict(train=8, val=2, test=2),
    labelled=4,
    steps=2,
    teacher_steps=2,
    batch=4,
    lengths={task: dict(short=2, long=3) for task in TASKS},
    scenes=2,
    rates=dict.fromkeys(TASKS, (1e-3,)),
    decays=(0.85,),
    seeds=2,
    width=24,
    decoder=24,
    points=1,
)  # fmt: skip
