"""Target normalizations by statistics of a teacher's channels, estimated during training and invertible afterwards."""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch
from mmengine.dist import all_reduce, broadcast
from torch import Tensor, nn

from mkd_plugin.models.precision import without_autocast
from mkd_plugin.models.protocols import Progress
from mkd_plugin.models.schedules import build_schedule
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import RegionTokens

METHODS = ('phi', 'global', 'channel', 'pca', 'zca', 'hadamard')
LEAST = 1e-9  # variance or eigenvalue, relative to the largest


class TargetStatistics(nn.Module):
    """Base of normalisations with statistics: float64 buffers, the same on every process, saved in checkpoints.

    Args:
        width: Channels of the target; the objective sets it.
    """

    wants_region = True
    mean: Tensor
    batches: Tensor

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.register_buffer('mean', torch.zeros(width, dtype=torch.float64))
        self.register_buffer('batches', torch.zeros((), dtype=torch.long))
        self.count = 0  # `batches` on the host, which must not wait for the device

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self.count = int(self.batches)

    def check_known(self) -> None:
        """Raise ValueError before the first batch."""
        if self.count == 0:
            raise ValueError(
                f'{type(self).__name__} has no statistics yet: they are estimated in training. Train at least one step, or '
                'load a checkpoint of the pre-training.'
            )

    def invert(self, target: Tensor) -> Tensor:
        """Map a standardised target (…, D) back to the teacher's space. Raises ValueError before the first batch."""
        raise NotImplementedError


def sums(target: Tensor, region: RegionTokens | None, *, products: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over the tokens of all processes: their number, x (D,), and x·xᵀ (D, D) or, without ``products``, x² (D,)."""
    rows_ND = target.detach().double().flatten(0, -2)
    weight_N = rows_ND.new_ones(len(rows_ND))
    if region is not None and region.weight_BR is not None:
        weight_N = region.weight_BR.double().flatten()
    weighted_ND = rows_ND * weight_N[:, None]
    second = weighted_ND.T @ rows_ND if products else (weighted_ND * rows_ND).sum(0)
    packed = torch.cat([weight_N.sum()[None], weighted_ND.sum(0), second.flatten()])
    all_reduce(packed, 'sum')
    width = rows_ND.shape[1]
    return packed[0], packed[1 : 1 + width], packed[1 + width :].view_as(second)


@MODELS.register_module()
class FixedStandardize(TargetStatistics):
    """y = (x − μ)·Wᵀ with statistics of the first batches of training: PHI-S and simpler standardisations.

    The first batch is standardised too, by the estimate so far, which is renewed after 1, 2, 4, … and ``batches`` batches. Each
    renewal gives PHI-S another basis, which the head has to learn, so these batches should lie in the warm-up; and at a renewal
    the step waits for the device.

    With the eigendecomposition Σ = U·Λ·Uᵀ of the covariance and a Hadamard matrix H of unit rows, W is, for each ``method``:

    ============  ==========================================================================
    ``phi``       mean(Λ)^−½ · H·Uᵀ: every channel has variance 1, all differences one scale (PHI-S)
    ``global``    mean(Λ)^−½: the mean variance of the channels is 1
    ``channel``   diag(Σ)^−½: every channel has variance 1 (Theia)
    ``pca``       Λ^−½ · Uᵀ: whitening
    ``zca``       U · Λ^−½ · Uᵀ: whitening that stays close to the original channels
    ``hadamard``  H · Λ^−½ · Uᵀ: whitening
    ============  ==========================================================================

    Source: "PHI-S: Distribution Balancing for Label-Free Multi-Teacher Distillation", arXiv 2410.01680.

    Args:
        width: Channels of the target; the objective sets it.
        method: One of the above.
        batches: Number of batches; together they need many more tokens than the target has channels.

    Raises:
        ValueError: ``method`` is unknown, or ``batches`` not positive.
    """

    transform: Tensor
    tokens: Tensor
    total: Tensor
    products: Tensor

    def __init__(self, *, width: int, method: str = 'phi', batches: int = 16) -> None:
        super().__init__(width=width)
        if method not in METHODS:
            raise ValueError(f"method='{method}': use one of {list(METHODS)}.")
        if batches < 1:
            raise ValueError(f'batches={batches}: it must be at least 1.')
        self.method, self.needed = method, batches
        self.register_buffer('transform', torch.eye(width, dtype=torch.float64))
        self.register_buffer('tokens', torch.zeros((), dtype=torch.float64))
        self.register_buffer('total', torch.zeros(width, dtype=torch.float64))
        self.register_buffer('products', torch.zeros(width, width, dtype=torch.float64))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, target: Tensor, region: RegionTokens | None = None) -> Tensor:
        """Standardise a target (…, R, D); in training, count it first. ``region`` marks padding tokens."""
        if self.training and self.count < self.needed:
            self.add(target, region)
        self.check_known()
        with without_autocast(target):
            return (target - self.mean.to(target.dtype)) @ self.transform.T.to(target.dtype)

    def invert(self, target: Tensor) -> Tensor:
        """Compute x = y·W^−T + μ in float64; the result has the target's type."""
        self.check_known()
        return (target.double() @ torch.linalg.inv(self.transform).T + self.mean).to(target.dtype)

    @torch.no_grad()
    def add(self, target: Tensor, region: RegionTokens | None) -> None:
        """Add a batch to the sums, and renew the estimate if it is due."""
        buffers = self.tokens, self.total, self.products
        for buffer, value in zip(buffers, sums(target, region, products=True), strict=True):
            buffer += value
        self.batches += 1
        self.count += 1
        if self.count & (self.count - 1) and self.count != self.needed:
            return
        self.mean.copy_(self.total / self.tokens)
        covariance = (self.products - self.tokens * self.mean.outer(self.mean)) / (self.tokens - 1)
        self.transform.copy_(transform_of(covariance, self.method))
        broadcast(self.transform)  # eigenvectors may differ between kinds of devices


def transform_of(covariance: Tensor, method: str) -> Tensor:
    """Compute W from a covariance (D, D), float64."""
    width = len(covariance)
    if method == 'channel':
        variances_D = covariance.diagonal()
        return variances_D.clamp(min=LEAST * variances_D.max()).rsqrt().diag()
    if method == 'global':
        return torch.eye(width).to(covariance) * covariance.diagonal().mean().rsqrt()
    values_D, vectors_DD = torch.linalg.eigh(covariance)
    values_D = values_D.clamp(min=0)
    largest_1D = vectors_DD.abs().argmax(0, keepdim=True)
    rotation_DD = (vectors_DD * vectors_DD.gather(0, largest_1D).sign()).T  # an eigenvector's sign is arbitrary
    if method == 'phi':
        return values_D.mean().rsqrt() * hadamard(width).to(covariance) @ rotation_DD
    white_DD = values_D.clamp(min=LEAST * values_D.max()).rsqrt()[:, None] * rotation_DD
    if method == 'pca':
        return white_DD
    return (rotation_DD.T if method == 'zca' else hadamard(width).to(covariance)) @ white_DD


def hadamard(size: int) -> Tensor:
    """Build an orthogonal matrix (size, size) in float64 whose entries all have the same magnitude, if one is known.

    Sylvester's construction doubles the smallest of Paley's matrices that fits. Without one, the matrix is the orthogonal
    factor of seeded random signs: PHI-S then makes the variances of channels about equal only.
    """
    odd = size
    while odd % 2 == 0:
        odd //= 2
    base = 1 if odd == 1 else 4 * odd
    matrix = torch.ones(1, 1, dtype=torch.float64) if odd == 1 else None
    while matrix is None and size % base == 0:
        matrix = paley(base)
        base = base if matrix is not None else 2 * base
    if matrix is None:
        signs = torch.randint(2, (size, size), generator=torch.Generator().manual_seed(0)).double() * 2 - 1
        return torch.linalg.qr(signs).Q
    double = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.kron(double, matrix)
    return matrix / size**0.5


def paley(size: int) -> Tensor | None:
    """Build Paley's first or second Hadamard matrix of ±1 over the integers modulo a prime; None if neither exists."""
    first, second = size - 1, size // 2 - 1
    if first % 4 == 3 and is_prime(first):
        core = bordered(first, -1.0)
        return core + torch.eye(size, dtype=torch.float64)
    if second % 4 == 1 and is_prime(second):
        core = bordered(second, 1.0)
        both, own = (torch.tensor(rows, dtype=torch.float64) for rows in ([[1, 1], [1, -1]], [[1, -1], [-1, -1]]))
        return torch.kron(core, both) + torch.kron(torch.eye(len(core), dtype=torch.float64), own)
    return None


def bordered(prime: int, sign: float) -> Tensor:
    """Quadratic characters of i − j modulo a prime, with a row of 1 above and a column of ``sign`` beside them."""
    squares = torch.arange(1, prime).square() % prime
    character = torch.full((prime,), -1.0, dtype=torch.float64)
    character[squares] = 1.0
    character[0] = 0.0
    numbers = torch.arange(prime)
    core = torch.zeros(prime + 1, prime + 1, dtype=torch.float64)
    core[0, 1:], core[1:, 0] = 1.0, sign
    core[1:, 1:] = character[(numbers[:, None] - numbers) % prime]
    return core


def is_prime(number: int) -> bool:
    """Whether a number is prime."""
    return number > 1 and all(number % divisor for divisor in range(2, isqrt(number) + 1))


@MODELS.register_module()
class RunningStandardize(TargetStatistics):
    """(x − mean) / (std + eps) per channel, with moving averages of both over training (UNIC).

    A batch is standardised by the averages before it, and then counts in them; the first one stays as it is. The standard
    deviation of a batch is that of all processes' tokens, unbiased, plus ``eps``; it is averaged itself, not the variance.

    Args:
        width: Channels of the target; the objective sets it.
        share: Share of a batch in the averages: a number, or the config of a ramp.
        eps: Added to standard deviations.
    """

    std: Tensor

    def __init__(self, *, width: int, share: float | dict[str, Any], eps: float = 1e-6) -> None:
        super().__init__(width=width)
        self.schedule = build_schedule(share, low=0, high=1, name='share')
        self.scheduled, self.eps = isinstance(share, dict), eps
        self.set_progress(Progress(0, 1))
        self.register_buffer('std', torch.ones(width, dtype=torch.float64))

    def set_progress(self, progress: Progress) -> None:
        """Update the share by its schedule."""
        self.share = self.schedule(progress)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, target: Tensor, region: RegionTokens | None = None) -> Tensor:
        """Standardise a target (…, R, D); in training, count it afterwards. ``region`` marks padding tokens."""
        if not self.training:
            self.check_known()
        result = target if self.count == 0 else (target - self.mean.to(target)) / (self.std + self.eps).to(target)
        if self.training:
            self.add(target, region)
        return result

    def invert(self, target: Tensor) -> Tensor:
        """Compute x = y·(std + eps) + mean."""
        self.check_known()
        return target * (self.std + self.eps).to(target) + self.mean.to(target)

    @torch.no_grad()
    def add(self, target: Tensor, region: RegionTokens | None) -> None:
        """Move the averages towards a batch."""
        count, total_D, squares_D = sums(target, region, products=False)
        mean_D = total_D / count
        std_D = ((squares_D - count * mean_D.square()).clamp(min=0) / (count - 1).clamp(min=1)).sqrt() + self.eps
        share = self.share if self.count else 1.0
        self.mean.lerp_(mean_D, share)
        self.std.lerp_(std_D, share)
        self.batches += 1
        self.count += 1
