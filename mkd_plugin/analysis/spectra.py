"""Spectra of features: spatial frequencies and variance of feature maps, singular values of tokens and of images.

Singular values come from the eigenvalues of the smaller of the two Gram matrices, min(n, c) wide, in float64 whatever the
type of the features: for ViT-B tokens 196 × 196 instead of 768 × 768. An eigenvalue is accurate to about 1e-15 of the
largest one, so a singular value of the tokens themselves, its root, to about 3e-8.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mkd_plugin.analysis.streaming import CrossScatter, ImageMean, check_finite, patches_of

AMPLITUDE_EPS = 1e-6


def squared_singular_values(x_BNC: Tensor) -> Tensor:
    """Squared singular values of each matrix (float64) in descending order, (B, min(N, C))."""
    wide = x_BNC.shape[1] <= x_BNC.shape[2]
    gram_BMM = x_BNC @ x_BNC.mT if wide else x_BNC.mT @ x_BNC
    return torch.linalg.eigvalsh(gram_BMM).clamp(min=0).flip(-1)


def token_log_spectrum(patches_BLD: Tensor, name: str = 'tokens') -> Tensor:
    """ln of the singular values of each image's centred, unbiased covariance over its tokens (cl-vs-mim).

    They are in descending order, (B, min(L − 1, D)); the others are zero up to rounding. Raises ValueError if all tokens of
    an image are equal.
    """
    length, width = patches_BLD.shape[1:]
    patches_BLD = patches_BLD.double()
    values_BM = squared_singular_values(patches_BLD - patches_BLD.mean(dim=1, keepdim=True)) / (length - 1)
    return floored_log(values_BM[:, : min(length - 1, width)], name)


def floored_log(values: Tensor, name: str) -> Tensor:
    """ln of singular values in descending order, clamped from below at the rounding error of the largest."""
    largest = values[..., :1]
    if (largest <= 0).any():
        raise ValueError(f'{name}: all features are equal, so they have no spectrum. The network has collapsed.')
    return torch.maximum(values, largest * torch.finfo(values.dtype).eps).log()


@dataclass(frozen=True)
class FourierSummary:
    """Relative log amplitude at one layer, float64."""

    relative_F: Tensor  #: mean log amplitude minus its value at frequency 0; curves over depth show the last entry
    frequency_F: Tensor  #: frequencies in units of π per patch along the shorter side: 2k / min(grid)
    images: int


@dataclass(frozen=True)
class SpectrumSummary:
    """A log singular-value spectrum in descending order, float64."""

    log_R: Tensor  #: ln of the singular values of a covariance (for tokens: mean over images of the ln)
    relative_R: Tensor  #: log_R minus the largest
    images: int


class PatchMean:
    """Mean over images of a function of the patch tokens at one layer, streamed over batches.

    ``name`` names the layer in messages. Raises ValueError if the grid has fewer patches than ``least``.
    """

    least = 1

    def __init__(self, *, grid: tuple[int, int], num_prefix: int = 1, name: str = 'tokens') -> None:
        if prod(grid) < self.least:
            raise ValueError(f'grid={grid}: {type(self).__name__} needs at least two patches. Use smaller patches.')
        self.grid, self.num_prefix, self.name = grid, num_prefix, name
        self._mean = ImageMean(name=name)

    def update(self, tokens_BND: Tensor, /) -> None:
        """Add a batch. Raises ValueError if it does not fit the grid, is not finite, or cannot be measured."""
        self._mean.update(self.measure(patches_of(tokens_BND, self.grid, self.num_prefix, self.name)))

    def measure(self, patches_BLD: Tensor) -> Tensor:
        """The function, (B, …)."""
        raise NotImplementedError


class FourierAmplitude(PatchMean):
    """Fourier relative log amplitude: ln(|F| + 1e-6) of the unnormalised transform of the maps, averaged **after** the log.

    The F = ⌈min(grid) / 2⌉ entries follow the diagonal outwards from frequency 0; entry k has k periods over the grid in
    both directions. On a grid that is not square the diagonal of the indices is used (the public code has squares only).
    """

    def measure(self, patches_BLD: Tensor) -> Tensor:
        """Log amplitude, mean over channels, (B, F)."""
        maps_BDhw = patches_BLD.transpose(1, 2).reshape(len(patches_BLD), -1, *self.grid)
        k_F = torch.arange((min(self.grid) + 1) // 2, device=patches_BLD.device)
        diagonal_BDF = torch.fft.fft2(maps_BDhw)[..., k_F, k_F]  # unshifted, frequency 0 comes first
        return (diagonal_BDF.abs() + AMPLITUDE_EPS).log().mean(dim=1)

    def result(self) -> FourierSummary:
        """Return the mean over all images so far. Raises ValueError if there was none."""
        mean_F = self._mean.result()
        frequency_F = 2 * torch.arange(len(mean_F), dtype=torch.float64) / min(self.grid)
        return FourierSummary(mean_F - mean_F[0], frequency_F, self._mean.images)


class FeatureMapVariance(PatchMean):
    """Unbiased variance over the grid, mean over channels and images."""

    least = 2

    def measure(self, patches_BLD: Tensor) -> Tensor:
        """Variance, mean over channels, (B,)."""
        return patches_BLD.var(dim=1, unbiased=True).mean(dim=1)

    def result(self) -> float:
        """Return the mean over all images so far. Raises ValueError if there was none."""
        return float(self._mean.result())


class TopRatio(PatchMean):
    """Σ_{i≤j} s_i / Σ s_i for j = 1 … k, as in dBOT: tokens L2-normalised, not centred, singular values s not squared.

    Use it on outputs of blocks, before a final norm. The other options are those of :class:`PatchMean`.
    """

    def __init__(self, *, k: int = 5, **layout: Any) -> None:
        super().__init__(**layout)
        self.k = k

    def measure(self, patches_BLD: Tensor) -> Tensor:
        """Shares, (B, k)."""
        rank = min(patches_BLD.shape[1:])
        if not 1 <= self.k <= rank:
            raise ValueError(
                f'{self.name}: k={self.k}, but {patches_BLD.shape[1]} tokens of width {patches_BLD.shape[2]} have {rank} '
                f'singular values. Use k from 1 to {rank}.'
            )
        if not patches_BLD.flatten(1).any(dim=1).all():
            raise ValueError(f'{self.name}: all tokens of an image are zero, so they have no spectrum.')
        values_BM = squared_singular_values(F.normalize(patches_BLD.double(), dim=-1)).sqrt()
        return values_BM[:, : self.k].cumsum(dim=1) / values_BM.sum(dim=1, keepdim=True)

    def result(self) -> Tensor:
        """Return the shares of the first 1 … k, (k,). Raises ValueError if there was no image."""
        return self._mean.result()


class TokenSpectrum(PatchMean):
    """Token-level spectrum: mean over images of the log spectrum."""

    least = 2

    def measure(self, patches_BLD: Tensor) -> Tensor:
        """See :func:`token_log_spectrum`."""
        return token_log_spectrum(patches_BLD, self.name)

    def result(self) -> SpectrumSummary:
        """Return min(L − 1, D) values over all images so far. Raises ValueError if there was no image."""
        log_R = self._mean.result()
        return SpectrumSummary(log_R, log_R - log_R[0], self._mean.images)


class ImageSpectrum:
    """Image-level spectrum at one layer: covariance over images of their mean tokens. Keeps D × D numbers."""

    def __init__(self, *, grid: tuple[int, int], num_prefix: int = 1, name: str = 'images') -> None:
        self.grid, self.num_prefix, self.name = grid, num_prefix, name
        self._scatter = CrossScatter()

    def update(self, tokens_BND: Tensor, /) -> None:
        """Add a batch. Raises ValueError if it does not fit the grid or is not finite."""
        pooled_BD = patches_of(tokens_BND, self.grid, self.num_prefix, self.name).mean(dim=1, dtype=torch.float64)
        self._scatter.update(pooled_BD, pooled_BD)

    def result(self) -> SpectrumSummary:
        """Return min(images − 1, D) values. Raises ValueError for fewer than two images, or if all features are equal."""
        images, scatter_DD = self._scatter.examples, self._scatter.scatter_CE
        rank = 0 if scatter_DD is None else min(images - 1, len(scatter_DD))
        if scatter_DD is None or not rank:
            raise ValueError(f'{self.name}: {images} images give a covariance of rank {rank}. Measure at least two.')
        check_finite(scatter_DD, self.name)
        values_D = torch.linalg.eigvalsh(scatter_DD / (images - 1)).clamp(min=0).flip(-1)
        log_R = floored_log(values_D[:rank], self.name)
        return SpectrumSummary(log_R, log_R - log_R[0], images)
