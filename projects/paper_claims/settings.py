"""Sizes and lengths of the experiment."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Settings that all runs share.

    Attributes:
        seeds: Number of pre-training seeds.
        draws: Draws of labelled images for each seed; no two seeds share one.
        width: Width of the ViT, which has four blocks of three heads.
        decoder_width: Width of the decoder, which has one block.
        epochs: Epochs of a pre-training, or of each of dBOT's stages.
        batch: Images per pre-training step.
        lr: Peak learning rate of pre-training.
        labels: Labelled images per class for fine-tuning.
        finetune_steps: Steps of fine-tuning.
        finetune_batch: Images per fine-tuning step.
        finetune_lr: Peak learning rate of fine-tuning.
        images: Training images used for pre-training; None for all 1,440.
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
        """Return the architecture of every student and teacher."""
        return dict(width=self.width, depth=4, num_heads=3)

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of pre-training steps per epoch."""
        return -(-(self.images or 1440) // self.batch)


FULL = Settings()
SMOKE = Settings(
    seeds=2, draws=2, width=24, decoder_width=24, epochs=2, batch=24, labels=1, finetune_steps=4, images=48
)
