"""Sizes and lengths of the whole experiment."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ['FULL', 'SMOKE', 'Settings']


@dataclass(frozen=True)
class Settings:
    """What all runs share.

    Attributes:
        seeds: Pre-training seeds, 0 … seeds − 1.
        draws: Draws of labelled images for each seed; no two seeds share one.
        width: Of the ViT, which has four blocks of three heads.
        decoder_width: Of the decoder, which has one block.
        epochs: Of one pre-training, and of each of dBOT's stages.
        batch: Images a step of pre-training.
        lr: Peak rate of pre-training.
        labels: Labelled images a class for fine-tuning.
        finetune_steps: Steps of fine-tuning.
        finetune_batch: Images a step of fine-tuning.
        finetune_lr: Peak rate of fine-tuning.
        images: Images of the training split used for pre-training; None for all 1,440.
    """

    seeds: int = 3
    draws: int = 10
    width: int = 48
    decoder_width: int = 48
    epochs: int = 20
    batch: int = 48
    lr: float = 3e-3
    labels: int = 5
    finetune_steps: int = 80
    finetune_batch: int = 20
    finetune_lr: float = 2e-3
    images: int | None = None

    @property
    def arch(self) -> dict[str, int]:
        """The ViT of every student and teacher."""
        return dict(width=self.width, depth=4, num_heads=3)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of pre-training in an epoch."""
        return -(-(self.images or 1440) // self.batch)


FULL = Settings()
SMOKE = Settings(
    seeds=2, draws=2, width=24, decoder_width=24, epochs=2, batch=24, labels=1, finetune_steps=4, images=48
)
