"""Sizes and lengths of an experiment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Finetuning:
    """A fine-tuning on some of the labels."""

    labels: int | None  #: Labelled images a class; None for all
    steps: int  #: Training steps
    batch: int  #: Images a step
    draws: int = 1  #: Draws of labelled images for each pre-training seed; no two seeds share one
    lr: float = 2e-3  #: Peak learning rate


@dataclass(frozen=True)
class Settings:
    """Settings that all runs of an experiment share."""

    finetunings: Mapping[str, Finetuning]  #: Measure → how it is fine-tuned
    images: int  #: Training images used for pre-training, the first ones
    seeds: int = 3  #: Pre-training seeds
    first_seed: int = 0  #: The first of them
    width: int = 48  #: Width of the ViT, which has four blocks
    num_heads: int = 3  #: Its attention heads
    decoder_width: int = 48  #: Width of the decoder, which has one block
    patch: int = 4  #: Side of a patch, pixels
    epochs: float = 20  #: Epochs of a pre-training, or of each of dBOT's stages
    by_epoch: bool = True  #: Whether runs are counted in epochs; else in steps, and an epoch need not end
    batch: int = 48  #: Images per pre-training step
    lr: float = 3e-3  #: Peak learning rate of pre-training
    probed: int | None = None  #: Labelled images a class of linear probe and k-NN; None for all

    @property
    def arch(self) -> dict[str, int]:
        """Return the architecture of every student and most teachers."""
        return dict(width=self.width, depth=4, num_heads=self.num_heads)

    @property
    def large(self) -> dict[str, int]:
        """Return the architecture of a teacher that is larger than its student."""
        return dict(width=2 * self.width, depth=4, num_heads=2 * self.num_heads)

    def steps(self, lengths: int = 1) -> int:
        """Return the number of steps of so many pre-trainings."""
        return round(lengths * self.epochs * -(-self.images // self.batch))

    def end(self, lengths: int = 1) -> int:
        """Return the number of epochs or steps, whichever the runs are counted in."""
        return round(lengths * self.epochs) if self.by_epoch else self.steps(lengths)

    def with_draws(self, draws: int) -> Settings:
        """Return these settings with another number of draws of every fine-tuning."""
        return replace(self, finetunings={name: replace(one, draws=draws) for name, one in self.finetunings.items()})


def settings_of(stored: Mapping[str, object]) -> Settings:
    """Read settings from a report."""
    tunings = stored['finetunings']
    assert isinstance(tunings, Mapping)
    return Settings(**{**stored, 'finetunings': {name: Finetuning(**one) for name, one in tunings.items()}})  # type: ignore[arg-type]
