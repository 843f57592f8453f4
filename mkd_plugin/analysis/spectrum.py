"""Singular values of features: how many directions tokens, and images, really use.

All of them come from the eigenvalues of the smaller of the two Gram matrices, min(n, c) wide, in float64 whatever the
features' type: for ViT-B's tokens 196 × 196 instead of 768 × 768. An eigenvalue is exact to about 1e-15 of the largest, so
a singular value of the tokens themselves, its root, to about 3e-8.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mkd_plugin.analysis.checks import check_finite, patches_of
from mkd_plugin.analysis.streaming import CrossScatter, ImageMean


def squared_singular_values(x_BNC: Tensor) -> Tensor:
    """Of each matrix (float64), the largest first, (B, min(N, C))."""
    wide = x_BNC.shape[1] <= x_BNC.shape[2]
    gram_BMM = x_BNC @ x_BNC.mT if wide else x_BNC.mT @ x_BNC
    return torch.linalg.eigvalsh(gram_BMM).clamp(min=0).flip(-1)


def top_ratio(patches_BLD: Tensor, k: int = 5) -> Tensor:
    """Σ_{i≤j} s_i / Σ s_i for j = 1 … k, (B, k): tokens L2-normalised, not centred, s not squared (dBOT)."""
    values_BM = squared_singular_values(F.normalize(patches_BLD.double(), dim=-1)).sqrt()
    return values_BM[:, :k].cumsum(dim=1) / values_BM.sum(dim=1, keepdim=True)


def token_log_spectrum(patches_BLD: Tensor, name: str = 'tokens') -> Tensor:
    """ln of the singular values of each image's centred, unbiased covariance over its tokens (cl-vs-mim).

    Returns:
        (B, min(L − 1, D)), the largest first. The covariance has no more than these: a D × D decomposition gives
        rounding noise for the rest.

    Raises:
        ValueError: All tokens of an image are the same.
    """
    length, width = patches_BLD.shape[1:]
    patches_BLD = patches_BLD.double()
    values_BM = squared_singular_values(patches_BLD - patches_BLD.mean(dim=1, keepdim=True)) / (length - 1)
    return floored_log(values_BM[:, : min(length - 1, width)], name)


def floored_log(values: Tensor, name: str) -> Tensor:
    """ln of singular values that are sorted, the largest first; those below rounding count as rounding, not as −∞."""
    largest = values[..., :1]
    if (largest <= 0).any():
        raise ValueError(
            f'{name}: the features do not vary at all, so they have no spectrum. The network has collapsed.'
        )
    return torch.maximum(values, largest * torch.finfo(values.dtype).eps).log()


@dataclass(frozen=True)
class SpectrumSummary:
    """A log singular-value spectrum, the largest first, float64.

    Attributes:
        log_R: ln of the singular values of a covariance (mean over images of the ln at token level).
        relative_R: The same minus the largest.
        images: How many were measured.
    """

    log_R: Tensor
    relative_R: Tensor
    images: int


class TopRatio:
    """dBOT's share of the first k singular values at one place of a network, mean over images, streamed over batches.

    For outputs of blocks, before any final norm.

    Args:
        grid: Patches per column and row.
        num_prefix: Tokens before the patches, dropped.
        k: How many shares.
        name: The place, for messages.
    """

    flavour = 'dbot'

    def __init__(self, *, grid: tuple[int, int], num_prefix: int = 1, k: int = 5, name: str = 'tokens') -> None:
        self.grid, self.num_prefix, self.k, self.name = grid, num_prefix, k, name
        self._mean = ImageMean(name=name)

    def update(self, tokens_BND: Tensor, /) -> None:
        """Take a batch.

        Raises:
            ValueError: It does not fit the grid, is not finite or all zero, or has fewer than k singular values.
        """
        patches_BLD = patches_of(tokens_BND, self.grid, self.num_prefix, self.name)
        rank = min(patches_BLD.shape[1:])
        if not 1 <= self.k <= rank:
            raise ValueError(
                f'{self.name}: k={self.k}, but {patches_BLD.shape[1]} tokens of width {patches_BLD.shape[2]} have {rank} '
                f'singular values. Use k from 1 to {rank}.'
            )
        if not patches_BLD.flatten(1).any(dim=1).all():
            raise ValueError(f'{self.name}: all tokens of an image are zero, so they have no spectrum.')
        self._mean.update(top_ratio(patches_BLD, self.k))

    def result(self) -> Tensor:
        """Shares for 1 … k, (k,). Raises ValueError if there was no image."""
        return self._mean.result()


class TokenSpectrum:
    """Token-level spectrum at one place of a network, mean of the log over images, streamed over batches.

    Args:
        grid: Patches per column and row, at least two.
        num_prefix: Tokens before the patches, dropped.
        name: The place, for messages.

    Raises:
        ValueError: A grid of one patch.
    """

    flavour = 'cl-vs-mim'

    def __init__(self, *, grid: tuple[int, int], num_prefix: int = 1, name: str = 'tokens') -> None:
        if grid == (1, 1):
            raise ValueError('grid=(1, 1): a covariance over tokens needs at least two of them. Use smaller patches.')
        self.grid, self.num_prefix, self.name = grid, num_prefix, name
        self._mean = ImageMean(name=name)

    def update(self, tokens_BND: Tensor, /) -> None:
        """Take a batch. Raises ValueError if it does not fit the grid, is not finite, or does not vary."""
        patches_BLD = patches_of(tokens_BND, self.grid, self.num_prefix, self.name)
        self._mean.update(token_log_spectrum(patches_BLD, self.name))

    def result(self) -> SpectrumSummary:
        """Over all images so far, min(L − 1, D) values. Raises ValueError if there was no image."""
        log_R = self._mean.result()
        return SpectrumSummary(log_R, log_R - log_R[0], self._mean.images)


class ImageSpectrum:
    """Image-level spectrum at one place of a network: tokens averaged first, covariance over images. Keeps D × D numbers.

    Args:
        grid: Patches per column and row.
        num_prefix: Tokens before the patches, dropped.
        count: How many singular values are wanted; None for as many as there are.
        name: The place, for messages.
    """

    flavour = 'cl-vs-mim'

    def __init__(
        self, *, grid: tuple[int, int], num_prefix: int = 1, count: int | None = None, name: str = 'images'
    ) -> None:
        if count is not None and count < 1:
            raise ValueError(f'count={count}: it must be at least 1, or None for all singular values.')
        self.grid, self.num_prefix, self.count, self.name = grid, num_prefix, count, name
        self._scatter = CrossScatter()

    def update(self, tokens_BND: Tensor, /) -> None:
        """Take a batch. Raises ValueError if it does not fit the grid or is not finite."""
        pooled_BD = patches_of(tokens_BND, self.grid, self.num_prefix, self.name).mean(dim=1, dtype=torch.float64)
        self._scatter.update(pooled_BD, pooled_BD)

    def result(self) -> SpectrumSummary:
        """Over all images so far: ``count`` values, or min(images − 1, D).

        Raises:
            ValueError: There are too few images for so many values, or they do not vary.
        """
        images, scatter_DD = self._scatter.examples, self._scatter.scatter_CE
        rank = 0 if scatter_DD is None else min(images - 1, len(scatter_DD))
        wanted = max(rank, 1) if self.count is None else self.count
        if scatter_DD is None or wanted > rank:
            raise ValueError(
                f'{self.name}: {images} images give a covariance of rank {rank}, but {wanted} singular values are wanted. '
                f'Measure at least {wanted + 1} images, or at most as many values as the width.'
            )
        check_finite(scatter_DD, self.name)
        values_D = torch.linalg.eigvalsh(scatter_DD / (images - 1)).clamp(min=0).flip(-1)
        log_R = floored_log(values_D[:wanted], self.name)
        return SpectrumSummary(log_R, log_R - log_R[0], images)
