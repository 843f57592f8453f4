"""Directions and the surface, against the formula written out."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mkd_plugin.analysis import (
    Hessian,
    MeanLoss,
    direction_of,
    filter_normalise,
    loss_at,
    loss_landscape,
    random_direction,
    top_eigenpairs,
)


class Tiny(nn.Module):
    """A perceptron with a position table and a batch norm, whose statistics an evaluation must not move."""

    def __init__(self):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, 4))
        self.rel_pos_bias = nn.ParameterDict({'relative_position_bias_table': torch.randn(3, 2)})
        self.first, self.norm, self.last = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)

    def forward(self, x):
        return self.last(self.norm(torch.tanh(self.first(x + self.pos_embed))))


@pytest.fixture
def loss():
    model = Tiny().double()
    x, labels = torch.randn(9, 4, dtype=torch.float64), torch.randint(0, 3, (9,))
    batches = list(zip(x.split(4), labels.split(4), strict=True))
    return MeanLoss(model, batches, lambda model, batch: F.cross_entropy(model(batch[0]), batch[1], reduction='none'))


def all_at_once(loss, displacement):
    """The mean loss of all nine examples with displaced weights."""
    x, labels = (torch.cat(column) for column in zip(*loss.batches, strict=True))
    weights = {name: w.detach() + displacement.get(name, 0) for name, w in loss.model.named_parameters()}
    loss.model.eval()
    value = F.cross_entropy(torch.func.functional_call(loss.model, weights, (x,)), labels).item()
    loss.model.train()
    return value


def test_filter_normalise__every_column_as_long_as_the_weights(loss):
    """The norm is over dim 0; one-dimensional parameters and positions do not move."""
    direction = random_direction(loss.parameters, seed=0)
    assert direction.keys() == loss.parameters.keys()
    moved = {name for name, b in direction.items() if b.any()}
    assert moved == {'first.weight', 'last.weight'}
    for name in moved:
        torch.testing.assert_close(direction[name].norm(dim=0), loss.parameters[name].norm(dim=0), rtol=1e-6, atol=0)


def test_filter_normalise__by_loops():
    w, b = torch.randn(3, 2, 2, dtype=torch.float64), torch.randn(3, 2, 2, dtype=torch.float64) * 1e-6
    found = filter_normalise({'conv': b}, {'conv': w})['conv']
    for i in range(2):
        for j in range(2):
            length = sum(w[k, i, j] ** 2 for k in range(3)).sqrt() / (
                sum(b[k, i, j] ** 2 for k in range(3)).sqrt() + 1e-7
            )
            torch.testing.assert_close(found[:, i, j], length * b[:, i, j], rtol=1e-12, atol=0)


def test_random_direction__depends_on_its_seed_only(loss):
    one, same, other = (random_direction(loss.parameters, seed=seed)['first.weight'] for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_loss_landscape__equals_displaced_weights_all_at_once(loss):
    """The middle is the loss itself; weights, batch statistics and training mode are afterwards what they were."""
    before = {name: value.clone() for name, value in loss.model.state_dict().items()}
    first, second = (random_direction(loss.parameters, seed=seed) for seed in (1, 2))
    points = []
    found = loss_landscape(loss, first, second, size=3, on_point=lambda: points.append(1))
    assert found.steps_S.tolist() == [-1, 0, 1] and len(points) == 9
    for i, x in enumerate((-1, 0, 1)):
        for j, y in enumerate((-1, 0, 1)):
            wanted = all_at_once(loss, {name: x * first[name] + y * second[name] for name in first})
            assert found.losses_SS[i, j].item() == pytest.approx(wanted, rel=1e-12)
    assert found.losses_SS[1, 1].item() == loss.value()
    assert found.losses_SS[0, 2] != found.losses_SS[2, 0]
    assert all(torch.equal(value, before[name]) for name, value in loss.model.state_dict().items())
    assert loss.model.training and loss.model.norm.training


def test_loss_landscape__along_hessian_eigenvectors(loss):
    vectors_KN = top_eigenpairs(Hessian(loss), 2).vectors_KN
    first, second = (direction_of(vector_N, loss.parameters) for vector_N in vectors_KN)
    start = 4 + 6  # after the position tables
    raw = vectors_KN[0][start : start + 20].view(5, 4)
    torch.testing.assert_close(F.normalize(first['first.weight'], dim=0), F.normalize(raw, dim=0), rtol=1e-4, atol=1e-4)
    assert not first['pos_embed'].any() and not first['first.bias'].any()
    found = loss_landscape(loss, first, second, size=3, radius=0.5)
    wanted = all_at_once(loss, {name: 0.5 * first[name] for name in first})
    assert found.losses_SS[2, 1].item() == pytest.approx(wanted, rel=1e-12)


def test_loss_landscape__default_grid(loss):
    directions = [random_direction(loss.parameters, seed=seed) for seed in (1, 2)]
    found = loss_landscape(loss, *directions)
    assert found.losses_SS.shape == (21, 21)
    assert found.steps_S.tolist() == pytest.approx([i / 10 for i in range(-10, 11)])
    assert found.steps_S[10] == 0


def test_loss_at__overflow_is_part_of_the_surface_and_weights_come_back(loss):
    before = loss.value()
    direction = {name: torch.full_like(w, 1e308) for name, w in loss.parameters.items()}
    assert not torch.isfinite(torch.tensor(loss_at(loss, direction, direction, (1.0, 1.0))))
    assert loss.value() == before


def test_loss_at__weights_come_back_after_an_error(loss):
    before = loss.parameters['first.weight'].detach().clone()
    broken = MeanLoss(loss.model, loss.batches, lambda model, batch: model(batch[0]))
    with pytest.raises(ValueError, match='one number per image'):
        loss_at(broken, *[random_direction(loss.parameters, seed=0)] * 2, (1.0, 1.0))
    assert torch.equal(loss.parameters['first.weight'], before) and loss.model.training


@pytest.mark.parametrize(('size', 'radius'), [(4, 1.0), (0, 1.0), (3, 0.0)])
def test_loss_landscape__bad_grid(loss, size, radius):
    direction = random_direction(loss.parameters, seed=0)
    with pytest.raises(ValueError, match=f'size={size}, radius={radius}: use an odd number'):
        loss_landscape(loss, direction, direction, size=size, radius=radius)
