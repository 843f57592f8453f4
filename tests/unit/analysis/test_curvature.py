"""Hessian products, eigenvalues, trace and density against an explicitly built Hessian of 198 parameters."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mkd_plugin.analysis import Hessian, MeanLoss, hutchinson_trace, spectral_density, top_eigenpairs
from mkd_plugin.models.vit import VisionTransformer


class Matrix:
    """A matrix that counts its products."""

    def __init__(self, matrix_NN):
        self.matrix_NN, self.like_N, self.products = matrix_NN, matrix_NN[0], 0

    def product(self, v_N):
        self.products += 1
        return self.matrix_NN @ v_N


def cross_entropy(model, batch):
    images, labels = batch
    return F.cross_entropy(model(images), labels, reduction='none')


@pytest.fixture
def network():
    """A perceptron 6 → 18 → 4 in float64, with dropout that an evaluation must switch off, and 23 examples."""
    model = nn.Sequential(nn.Linear(6, 18), nn.Tanh(), nn.Dropout(0.5), nn.Linear(18, 4, bias=False), nn.Softplus())
    model = model.double().train()
    x, labels = torch.randn(23, 6, dtype=torch.float64), torch.randint(0, 4, (23,))
    return model, x, labels


def explicit_hessian(model, x, labels):
    """Column by column, from the flattened loss."""
    names, values = zip(*model.named_parameters(), strict=True)
    flat = torch.cat([value.detach().flatten() for value in values])
    sizes = [value.numel() for value in values]

    def loss(flat):
        parts = {name: part.view_as(value) for name, value, part in zip(names, values, flat.split(sizes), strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, parts, (x,)), labels)

    was_training = model.training
    model.eval()
    hessian = torch.autograd.functional.hessian(loss, flat)
    model.train(was_training)
    return hessian


def hessian_of(model, x, labels, size=23):
    return Hessian(MeanLoss(model, list(zip(x.split(size), labels.split(size), strict=True)), cross_entropy))


@pytest.mark.parametrize('size', [23, 10, 1])
def test_hessian__product_equals_the_explicit_matrix(network, size):
    """For batches of 10, 10 and 3 as for one of 23; dropout is off, and training mode comes back."""
    matrix_NN = explicit_hessian(*network)
    assert matrix_NN.shape == (198, 198)
    hessian = hessian_of(*network, size=size)
    v_N = torch.randn(198, dtype=torch.float64)
    torch.testing.assert_close(hessian.product(v_N), matrix_NN @ v_N, rtol=1e-10, atol=1e-12)
    assert all(module.training for module in network[0].modules())
    assert all(parameter.grad is None for parameter in network[0].parameters())


def test_hessian__frozen_parameters_are_left_out(network):
    model, x, labels = network
    matrix_NN = explicit_hessian(*network)
    model[0].requires_grad_(False)
    v_N = torch.randn(72, dtype=torch.float64)
    torch.testing.assert_close(hessian_of(*network).product(v_N), matrix_NN[126:, 126:] @ v_N, rtol=1e-10, atol=1e-12)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match='no parameter with requires_grad'):
        hessian_of(*network)


def test_hessian__parameters_that_the_loss_does_not_use(network):
    """Their rows are zero: a head that another task trains, for example."""
    matrix_NN = explicit_hessian(*network)
    model, x, labels = network
    model[1].register_parameter('unused', nn.Parameter(torch.ones(3, dtype=torch.float64)))
    product = hessian_of(*network).product(torch.ones(201, dtype=torch.float64))
    assert product[126:129].tolist() == [0, 0, 0]
    used = torch.cat([product[:126], product[129:]])
    torch.testing.assert_close(used, matrix_NN.sum(dim=1), rtol=1e-10, atol=1e-12)


def test_hessian__of_a_linear_loss_is_zero():
    model = nn.Linear(3, 1)
    hessian = Hessian(MeanLoss(model, [torch.randn(5, 3)], lambda model, x: model(x).squeeze(1)))
    assert hessian.product(torch.ones(4)).tolist() == [0.0] * 4
    found = top_eigenpairs(hessian, 2)
    assert found.values_K.tolist() == [0, 0] and found.converged == [True, True]


def test_hessian__through_fused_attention():
    """Our ViT has a second derivative although its attention is fused: symmetric, and as finite differences say."""
    model = VisionTransformer(arch=dict(width=8, depth=2, num_heads=2), img_size=8, patch_size=4).double()
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    loss = MeanLoss(
        model, [images[:2], images[2:]], lambda model, x: model(x).tokens('output')[:, 0].pow(3).mean(dim=1)
    )
    hessian = Hessian(loss)
    u, v = F.normalize(torch.randn(2, hessian.like_N.numel(), dtype=torch.float64))
    product = hessian.product(v)
    torch.testing.assert_close(u @ product, v @ hessian.product(u), rtol=1e-9, atol=1e-12)

    def gradient(at):
        torch.nn.utils.vector_to_parameters(at, hessian.parameters)
        model.zero_grad()
        sum(loss.loss(model, batch).sum() for batch in loss.batches).div(3).backward()
        return torch.cat([parameter.grad.flatten() for parameter in hessian.parameters])

    start, step = hessian.like_N.clone(), 1e-6
    difference = (gradient(start + step * v) - gradient(start - step * v)) / (2 * step)
    torch.testing.assert_close(product, difference, rtol=1e-4, atol=1e-6)


def test_hessian__a_loss_that_overflows(network):
    model, x, labels = network
    hessian = hessian_of(model, x.index_fill(0, torch.tensor([3]), torch.nan), labels)
    with pytest.raises(ValueError, match='product with the Hessian is not finite'):
        hessian.product(hessian.like_N)


def test_mean_loss__bad_input(network):
    model, x, labels = network
    with pytest.raises(ValueError, match='batches is an iterator'):
        MeanLoss(model, iter([x]), cross_entropy)
    with pytest.raises(ValueError, match=r'one number per image, \(B,\), got the shape \(\)'):
        MeanLoss(model, [x], lambda model, x: model(x).mean()).value()
    with pytest.raises(ValueError, match='There is no batch'):
        MeanLoss(model, [], cross_entropy).value()


def test_mean_loss__equals_all_at_once_and_restores_mixed_modes(network):
    model, x, labels = network
    model[0].eval()
    batches = list(zip(x.split(10), labels.split(10), strict=True))
    value = MeanLoss(model, batches, cross_entropy).value()
    assert [module.training for module in model.modules()] == [True, False, True, True, True, True]
    assert value == pytest.approx(F.cross_entropy(model.eval()(x), labels).item(), rel=1e-13)


def test_top_eigenpairs__equal_those_of_the_explicit_hessian(network):
    """The largest in magnitude, whatever their sign."""
    values_N, vectors_NN = torch.linalg.eigh(explicit_hessian(*network))
    order = values_N.abs().argsort(descending=True)
    found = top_eigenpairs(hessian_of(*network, size=10), 3, tolerance=1e-9, max_iterations=2000)
    assert found.converged == [True] * 3
    torch.testing.assert_close(found.values_K, values_N[order[:3]], rtol=1e-5, atol=0)
    torch.testing.assert_close(found.vectors_KN @ found.vectors_KN.T, torch.eye(3, dtype=torch.float64))
    for vector, index in zip(found.vectors_KN, order, strict=False):
        assert abs(vector @ vectors_NN[:, index]) == pytest.approx(1, abs=1e-2)


def test_top_eigenpairs__negative_values_and_default_tolerance():
    rotation = torch.linalg.qr(torch.randn(30, 30, dtype=torch.float64)).Q
    spectrum = torch.cat([torch.tensor([-9.0, 5.0]), torch.linspace(-1, 1, 28)]).double()
    found = top_eigenpairs(Matrix(rotation @ spectrum.diag() @ rotation.T), 2)
    assert found.values_K.tolist() == pytest.approx([-9, 5], rel=2e-3)
    assert all(count < 30 for count in found.iterations)


def test_top_eigenpairs__stops_at_the_tolerance_or_the_limit():
    matrix = Matrix(torch.diag(torch.tensor([1.0, 0.999, 0.5], dtype=torch.float64)))
    found = top_eigenpairs(matrix, 1, tolerance=0, max_iterations=7)
    assert (found.iterations, found.converged, matrix.products) == ([7], [False], 7)
    matrix = Matrix(torch.eye(4, dtype=torch.float64) * 2)
    found = top_eigenpairs(matrix, 1)
    assert (found.iterations, found.converged, matrix.products) == ([2], [True], 2)
    assert found.values_K.item() == pytest.approx(2)


def test_hutchinson_trace__of_the_explicit_hessian(network):
    """Within four times its exact standard error, √(2 Σ_{i≠j} H² / m), which its own estimate agrees with."""
    matrix_NN = explicit_hessian(*network)
    off = matrix_NN - matrix_NN.diag().diag()
    error = math.sqrt(2 * off.square().sum().item() / 400)
    found = hutchinson_trace(hessian_of(*network), tolerance=0, max_samples=400)
    assert abs(found.value - matrix_NN.trace().item()) < 4 * error
    assert error < 0.1 * matrix_NN.trace().item()  # or the line above would say little
    assert found.standard_error == pytest.approx(error, rel=0.2)
    assert (found.samples, found.converged) == (400, False)


def test_hutchinson_trace__exact_where_the_matrix_is_diagonal():
    """Squares of ±1 are 1: two samples agree, and the running mean stops there."""
    matrix = Matrix(torch.diag(torch.linspace(1, 3, 11, dtype=torch.float64)))
    found = hutchinson_trace(matrix)
    assert (found.value, found.standard_error, found.samples, found.converged) == (pytest.approx(22), 0, 2, True)


def test_hutchinson_trace__stops_when_the_running_mean_stands():
    values_NN = torch.randn(20, 20, dtype=torch.float64)
    matrix = Matrix(values_NN @ values_NN.T)
    found = hutchinson_trace(matrix, tolerance=0.02, seed=3)
    means = [hutchinson_trace(matrix, tolerance=0, max_samples=count, seed=3).value for count in range(1, 101)]
    moves = [abs(new - old) <= 0.02 * max(abs(new), abs(old)) for old, new in zip(means, means[1:], strict=False)]
    assert found.samples == moves.index(True) + 2
    assert found.value == pytest.approx(means[found.samples - 1])


def test_spectral_density__integrates_to_one_with_the_traces_mean(network):
    hessian = hessian_of(*network)
    found = spectral_density(hessian, steps=20, seed=5)
    trace = hutchinson_trace(hessian, tolerance=0, max_samples=1, seed=5)  # the same vector
    assert found.weights_M.sum().item() == pytest.approx(1, rel=1e-12)
    mean = float(found.nodes_M @ found.weights_M)
    assert mean == pytest.approx(trace.value / 198, rel=1e-10)
    at_P, density_P = found.smooth()
    assert torch.trapezoid(density_P, at_P).item() == pytest.approx(1, abs=1e-4)
    assert torch.trapezoid(density_P * at_P, at_P).item() == pytest.approx(mean, abs=1e-4)


def test_spectral_density__as_many_steps_as_eigenvalues_gives_the_spectrum():
    """With full re-orthogonalisation: 60 steps on 60 distinct eigenvalues find each once, with the weight of its vector."""
    rotation = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64)).Q
    spectrum = torch.linspace(-2, 10, 60, dtype=torch.float64) ** 3
    found = spectral_density(Matrix(rotation @ spectrum.diag() @ rotation.T), steps=100, seed=1)
    torch.testing.assert_close(found.nodes_M, spectrum.sort().values, rtol=1e-8, atol=1e-8)
    generator = torch.Generator().manual_seed(1)
    signs = (torch.randint(0, 2, (60,), generator=generator) * 2 - 1).double()
    torch.testing.assert_close(found.weights_M, (rotation.T @ signs).square() / 60, rtol=1e-6, atol=1e-9)


def test_spectral_density__ends_where_the_krylov_space_does():
    """Two distinct eigenvalues need two steps."""
    matrix = Matrix(torch.diag(torch.tensor([1.0] * 6 + [4.0] * 2, dtype=torch.float64)))
    found = spectral_density(matrix, steps=8)
    assert found.nodes_M.tolist() == pytest.approx([1, 4])
    assert found.weights_M.tolist() == pytest.approx([0.75, 0.25])
    assert matrix.products == 2
    at_P, density_P = spectral_density(Matrix(torch.eye(3, dtype=torch.float64))).smooth(points=501)
    assert at_P[density_P.argmax()].item() == pytest.approx(1)
    assert torch.trapezoid(density_P, at_P).item() == pytest.approx(1, abs=1e-4)


def test_curvature__bad_input():
    matrix = Matrix(torch.eye(3))
    for count in (0, 4):
        with pytest.raises(ValueError, match=f'count={count}: a matrix of 3 parameters has from 1 to 3 eigenvalues'):
            top_eigenpairs(matrix, count)
    for call, option in (
        (lambda: top_eigenpairs(matrix, 1, max_iterations=0), 'max_iterations'),
        (lambda: hutchinson_trace(matrix, max_samples=0), 'max_samples'),
        (lambda: spectral_density(matrix, steps=0), 'steps'),
    ):
        with pytest.raises(ValueError, match=f'{option}=0: it must be at least 1'):
            call()
