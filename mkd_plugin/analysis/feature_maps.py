"""Feature maps as images: which spatial frequencies they hold, and how much they vary over the grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mkd_plugin.analysis.checks import patches_of
from mkd_plugin.analysis.streaming import ImageMean

AMPLITUDE_EPS = 1e-6


def log_amplitude(patches_BLD: Tensor, grid: tuple[int, int]) -> Tensor:
    """ln(|F| + 1e-6) of the maps' unnormalised Fourier transform, mean over channels **after** the log, (B, F).

    F = ⌈min(grid) / 2⌉ entries: from frequency 0 (the centre of the shifted transform) along the diagonal outwards, entry
    k being k periods over the grid in both directions. On a grid that is not square the diagonal is that of the indices
    (our choice; the public code knows squares only).
    """
    maps_BDhw = patches_BLD.transpose(1, 2).reshape(len(patches_BLD), -1, *grid)
    k_F = torch.arange((min(grid) + 1) // 2, device=patches_BLD.device)
    diagonal_BDF = torch.fft.fft2(maps_BDhw)[..., k_F, k_F]  # unshifted, frequency 0 comes first
    return (diagonal_BDF.abs() + AMPLITUDE_EPS).log().mean(dim=1)


def feature_map_variance(patches_BLD: Tensor) -> Tensor:
    """Unbiased variance over the grid, mean over channels, (B,)."""
    return patches_BLD.var(dim=1, unbiased=True).mean(dim=1)


@dataclass(frozen=True)
class FourierSummary:
    """Relative log amplitude of one place of a network, float64.

    Attributes:
        relative_F: Mean log amplitude minus its value at frequency 0; a depth curve takes the last entry.
        frequency_F: In units of π per patch along the shorter side: 2k / min(grid).
        images: How many were measured.
    """

    relative_F: Tensor
    frequency_F: Tensor
    images: int


class FourierAmplitude:
    """Fourier relative log amplitude of one place of a network, streamed over batches.

    The curve over depth has three kinds of places: the patch embedding, and every block's tokens after the attention
    residual and after the perceptron's.

    Args:
        grid: Patches per column and row.
        num_prefix: Tokens before the patches, dropped.
        name: The place, for messages.
    """

    def __init__(self, *, grid: tuple[int, int], num_prefix: int = 1, name: str = 'feature map') -> None:
        self.grid, self.num_prefix, self.name = grid, num_prefix, name
        self._mean = ImageMean(name=name)

    def update(self, tokens_BND: Tensor, /) -> None:
        """Take a batch. Raises ValueError if it does not fit the grid or is not finite."""
        patches_BLD = patches_of(tokens_BND, self.grid, self.num_prefix, self.name)
        self._mean.update(log_amplitude(patches_BLD, self.grid))

    def result(self) -> FourierSummary:
        """Over all images so far. Raises ValueError if there was none."""
        mean_F = self._mean.result()
        frequency_F = 2 * torch.arange(len(mean_F), dtype=torch.float64) / min(self.grid)
        return FourierSummary(mean_F - mean_F[0], frequency_F, self._mean.images)


class FeatureMapVariance:
    """Variance over the grid at one place of a network, mean over channels and images, streamed over batches.

    Args:
        grid: Patches per column and row, at least two.
        num_prefix: Tokens before the patches, dropped.
        name: The place, for messages.

    Raises:
        ValueError: A grid of one patch.
    """

    def __init__(self, *, grid: tuple[int, int], num_prefix: int = 1, name: str = 'feature map') -> None:
        if grid == (1, 1):
            raise ValueError('grid=(1, 1): a variance over the grid needs at least two patches. Use smaller patches.')
        self.grid, self.num_prefix, self.name = grid, num_prefix, name
        self._mean = ImageMean(name=name)

    def update(self, tokens_BND: Tensor, /) -> None:
        """Take a batch. Raises ValueError if it does not fit the grid or is not finite."""
        self._mean.update(feature_map_variance(patches_of(tokens_BND, self.grid, self.num_prefix, self.name)))

    def result(self) -> float:
        """Over all images so far. Raises ValueError if there was none."""
        return float(self._mean.result())
