"""Eigenvalues, trace and spectral density of a symmetric matrix given by its products (Yao et al. 2020, PyHessian).

curvlinops offers similar estimators, but its Lanczos iteration has no re-orthogonalisation and fails when the Krylov space
closes, and its estimators have no seed, tolerance or standard error.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isclose, nan, pi, sqrt
from statistics import fmean, stdev

import torch
from torch import Tensor

from mkd_plugin.analysis.loss_surface import SymmetricOperator


@dataclass(frozen=True)
class Eigenpairs:
    """The eigenvalues of largest magnitude, in the order in which they were found."""

    values_K: Tensor
    vectors_KN: Tensor  #: orthonormal eigenvectors
    iterations: list[int]  #: products for each
    converged: list[bool]  #: whether each reached the tolerance


def top_eigenpairs(
    matrix: SymmetricOperator, count: int = 2, *, tolerance: float = 1e-3, max_iterations: int = 100, seed: int = 0
) -> Eigenpairs:
    """Find eigenpairs of an N × N matrix by power iteration with deflation; the eigenvalue is ⟨Hv, v⟩.

    An iteration ends when the eigenvalue changes by less than the relative ``tolerance``, or after ``max_iterations``
    products. Raises ValueError if ``count`` exceeds N, or ``max_iterations`` is below 1.
    """
    size = matrix.like_N.numel()
    if not 1 <= count <= size:
        raise ValueError(f'count={count}: a matrix of {size} parameters has from 1 to {size} eigenvalues.')
    check_positive('max_iterations', max_iterations)
    generator = torch.Generator().manual_seed(seed)
    vectors_KN = matrix.like_N.new_zeros(0, size)
    values, iterations, converged = [], [], []
    for _ in range(count):
        start_N = torch.randn(size, generator=generator, dtype=torch.float64).to(matrix.like_N)
        value, vector_N, steps, done = power_iteration(matrix, start_N, vectors_KN, tolerance, max_iterations)
        vectors_KN = torch.cat([vectors_KN, vector_N[None]])
        values.append(value)
        iterations.append(steps)
        converged.append(done)
    return Eigenpairs(torch.tensor(values, dtype=torch.float64), vectors_KN, iterations, converged)


def power_iteration(
    matrix: SymmetricOperator, v_N: Tensor, known_KN: Tensor, tolerance: float, max_iterations: int
) -> tuple[float, Tensor, int, bool]:
    """Eigenvalue, vector, products and convergence, in the orthogonal complement of the known vectors."""
    v_N = without(v_N, known_KN)
    v_N = v_N / v_N.norm()
    value = nan
    for step in range(1, max_iterations + 1):
        product_N = without(matrix.product(v_N), known_KN)
        before, value = value, float(product_N @ v_N)
        norm = product_N.norm()
        if norm == 0:  # the matrix is zero in this complement
            return 0.0, v_N, step, True
        v_N = product_N / norm
        if isclose(before, value, rel_tol=tolerance):
            return value, v_N, step, True
    return value, v_N, max_iterations, False


def without(v_N: Tensor, known_KN: Tensor) -> Tensor:
    """Project out known orthonormal vectors, twice because of rounding."""
    for _ in range(2):
        v_N = v_N - known_KN.T @ (known_KN @ v_N)
    return v_N


@dataclass(frozen=True)
class TraceEstimate:
    """An estimate of the trace."""

    value: float  #: mean over random vectors
    standard_error: float  #: NaN for a single vector
    samples: int  #: random vectors
    converged: bool  #: whether the running mean reached the tolerance


def hutchinson_trace(
    matrix: SymmetricOperator, *, tolerance: float = 1e-3, max_samples: int = 100, seed: int = 0
) -> TraceEstimate:
    """Estimate the trace as the mean of vᵀ H v over Rademacher vectors (Hutchinson 1990).

    Sampling ends when the running mean changes by less than the relative ``tolerance`` (never if that is 0), or after
    ``max_samples``. Two samples may agree by chance, so check the standard error. Raises ValueError if ``max_samples`` is
    below 1.
    """
    check_positive('max_samples', max_samples)
    generator = torch.Generator().manual_seed(seed)
    samples: list[float] = []
    mean, converged = nan, False
    while len(samples) < max_samples and not converged:
        v_N = rademacher(matrix.like_N, generator)
        samples.append(float(matrix.product(v_N) @ v_N))
        before, mean = mean, fmean(samples)
        converged = tolerance > 0 and isclose(before, mean, rel_tol=tolerance)
    error = stdev(samples) / sqrt(len(samples)) if len(samples) > 1 else nan
    return TraceEstimate(mean, error, len(samples), converged)


@dataclass(frozen=True)
class SpectralDensity:
    """The distribution of eigenvalues, as points with weights."""

    nodes_M: Tensor  #: Ritz values of a random vector
    weights_M: Tensor  #: they sum to one

    def smooth(self, *, points: int = 1000, width: float = 0.01) -> tuple[Tensor, Tensor]:
        """Return a curve to plot: eigenvalues and densities, (points,) each, with a Gaussian at every node. Its integral is
        one.

        ``width`` is the standard deviation of the Gaussians relative to the range of the nodes.
        """
        low, high = float(self.nodes_M.min()), float(self.nodes_M.max())
        sigma = width * ((high - low) or abs(high) or 1.0)
        at_P = torch.linspace(low - 6 * sigma, high + 6 * sigma, points, dtype=torch.float64)
        bells_PM = torch.exp(-0.5 * ((at_P[:, None] - self.nodes_M) / sigma) ** 2) / (sigma * sqrt(2 * pi))
        return at_P, bells_PM @ self.weights_M


def spectral_density(matrix: SymmetricOperator, *, steps: int = 100, seed: int = 0) -> SpectralDensity:
    """Estimate the density by stochastic Lanczos quadrature with full re-orthogonalisation, from a Rademacher vector.

    Takes ``steps`` products, fewer if the matrix is smaller, and memory for as many vectors. Raises ValueError if ``steps``
    is below 1.
    """
    check_positive('steps', steps)
    start_N = rademacher(matrix.like_N, torch.Generator().manual_seed(seed))
    values_M, vectors_MM = torch.linalg.eigh(lanczos(matrix, start_N, steps))
    return SpectralDensity(values_M, vectors_MM[0].square())


def lanczos(matrix: SymmetricOperator, start_N: Tensor, steps: int) -> Tensor:
    """The tridiagonal matrix of the Krylov space of a vector, (M, M) float64 on the CPU, M ≤ steps."""
    size = start_N.numel()
    basis_MN = start_N.new_zeros(min(steps, size), size)
    diagonal: list[float] = []
    beside: list[float] = []
    v_N = start_N / start_N.norm()
    for step in range(len(basis_MN)):
        basis_MN[step] = v_N
        product_N = matrix.product(v_N)
        diagonal.append(float(product_N @ v_N))
        product_N = without(product_N, basis_MN[: step + 1])
        norm = float(product_N.norm())
        scale = max(map(abs, diagonal + beside))
        if step + 1 == len(basis_MN) or norm <= torch.finfo(start_N.dtype).eps * scale * sqrt(size):
            break  # all steps are done, or the Krylov space is closed and the rest is rounding
        beside.append(norm)
        v_N = product_N / norm
    off = torch.tensor(beside, dtype=torch.float64)
    return torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + torch.diag(off, 1) + torch.diag(off, -1)


def rademacher(like_N: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a vector of ±1 that is the same on every device."""
    return (torch.randint(0, 2, like_N.shape, generator=generator) * 2 - 1).to(like_N)


def check_positive(option: str, given: int) -> None:
    """Raise ValueError for a number below 1."""
    if given < 1:
        raise ValueError(f'{option}={given}: it must be at least 1.')
