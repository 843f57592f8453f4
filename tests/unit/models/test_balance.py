"""Combinations of terms against loops over images, and heads and loss of several teachers against plain code."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.networks import VIT, scatter_weights
from torch import nn
from torch.nn import functional as F

from mkd_plugin.engine.compile import compile_model
from mkd_plugin.models.balance import RunningBalance, TeacherDropping
from mkd_plugin.models.heads import LadderHead, ResidualAdaptor
from mkd_plugin.models.losses import CosineSmoothL1Loss
from mkd_plugin.models.protocols import Progress, Term
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import RegionTokens, TokenFeatures, TokenMask, Tokens
from mkd_plugin.utils.draws import draw_uniform, start_step

FROZEN = dict(type='ViTTeacher', arch=VIT['arch'], patch_size=4, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3)


@pytest.fixture(autouse=True)
def no_step():
    yield
    start_step(None)


def term(loss: torch.Tensor, teacher: str, weight: float = 1.0) -> Term:
    ids = torch.arange(loss.shape[1]).expand(len(loss), -1)
    return Term((loss,), RegionTokens('all', False, ids), weight, teacher)


def two_teachers(images: int = 64) -> dict[str, Term]:
    return dict(
        a_cls=term(torch.rand(images, 1, dtype=torch.float64), 'a', 0.5),
        a_patch=term(torch.rand(images, 5, dtype=torch.float64), 'a', 0.5),
        b=term(torch.rand(images, 5, dtype=torch.float64), 'b'),
        c=term(torch.rand(images, 5, dtype=torch.float64), 'c'),
    )


def test_dropping__equals_a_loop_over_images():
    terms = two_teachers()
    start_step(7)
    balance = TeacherDropping(drop=0.5)
    found = balance(terms)
    drawn = draw_uniform('teacher dropping', [3, 64], 1, torch.device('cpu'))
    wanted, kept, counts = dict.fromkeys(terms, 0.0), 0, dict.fromkeys('abc', 0)
    for image in range(64):
        losses = {name: (one.weight * one.losses[0][image].mean()).item() for name, one in terms.items()}
        totals = [losses['a_cls'] + losses['a_patch'], losses['b'], losses['c']]
        for place, teacher in enumerate('abc'):
            if totals[place] == max(totals) or drawn[place, image] >= 0.5:
                kept, counts[teacher] = kept + 1, counts[teacher] + 1
                wanted.update({name: wanted[name] + losses[name] for name in terms if terms[name].teacher == teacher})
    assert {name: loss.item() for name, loss in found.items()} == pytest.approx(
        {name: value / kept for name, value in wanted.items()}, rel=1e-12
    )
    assert 64 < kept < 3 * 64
    assert all(balance.watched[f'{teacher}_kept'].item() == count / 64 for teacher, count in counts.items())
    assert balance.watched['b_mean'].item() == pytest.approx(terms['b'].losses[0].mean().item())


def test_dropping__without_dropping_is_the_mean_over_teachers():
    terms = two_teachers()
    found, in_evaluation = TeacherDropping(drop=0.0)(terms), TeacherDropping(drop=1.0).eval()(terms)
    for name, one in terms.items():
        assert found[name].item() == pytest.approx(one.mean().item() / 3, rel=1e-12)
        assert torch.equal(found[name], in_evaluation[name])


@pytest.mark.parametrize('ranks', [2, 4])
def test_dropping__processes_keep_the_same_teachers(ranks, monkeypatch):
    terms = two_teachers()
    start_step(7)
    whole = TeacherDropping()(terms)
    numbers, parts = [], []
    for sums in (True, False):  # first gather every process's number of kept pairs, then use their mean

        def all_reduce(value, op, sums=sums):
            numbers.append(value.item()) if sums else value.fill_(sum(numbers) / ranks)

        monkeypatch.setattr('mkd_plugin.models.balance.all_reduce', all_reduce)
        for rank in range(ranks):
            start_step(7, rank=rank, ranks=ranks)
            own = {name: term(one.losses[0][rank::ranks], one.teacher, one.weight) for name, one in terms.items()}
            parts.append(TeacherDropping()(own))
    for name, loss in whole.items():
        assert sum(part[name].item() for part in parts[ranks:]) / ranks == pytest.approx(loss.item(), rel=1e-12)


@pytest.mark.parametrize('by', ['spread', 'mean'])
def test_running__gives_every_objective_the_same_size(by):
    """The average of 1 − 0.9^t weights, its bias corrected; an objective's own weight is kept."""
    balance = RunningBalance(objectives=('a', 'b'), by=by, momentum=0.9)
    seen = []
    for _ in range(3):
        losses = [3 + torch.rand(8, 5, dtype=torch.float64), 0.01 * torch.rand(8, 5, dtype=torch.float64)]
        seen.append([loss.mean(1) for loss in losses])
        found = balance(dict(a=term(losses[0], 'x', 2.0), b=term(losses[1], 'y')))
        weights = torch.tensor([0.9**age for age in range(len(seen))][::-1], dtype=torch.float64)
        for place, (name, weight) in enumerate(dict(a=2.0, b=1.0).items()):
            values = torch.stack([step[place] for step in seen])
            mean = (values.mean(1) * weights).sum() / weights.sum()
            square = (values.square().mean(1) * weights).sum() / weights.sum()
            size = mean if by == 'mean' else (square - mean**2).sqrt().maximum(0.01 * mean)
            assert found[name].item() == pytest.approx((weight * losses[place].mean() / size).item(), rel=1e-9)
            assert balance.watched[f'{name}_size'].item() == pytest.approx(size.item(), rel=1e-9)


def test_balance__refuses_what_it_does_not_know():
    for wrong, message in ((dict(by='std'), "by='std': use 'spread' or 'mean'"), (dict(momentum=1.0), 'momentum=1.0')):
        with pytest.raises(ValueError, match=message):
            RunningBalance(objectives=('a',), **wrong)
    with pytest.raises(ValueError, match='drop=2: it must lie in'):
        TeacherDropping(drop=2)


def distiller(**balance):
    part = dict(tap='output', student='output', loss=dict(type='CosineLoss'), head=dict(type='ResidualAdaptor'))
    model = MODELS.build(
        dict(
            type='MaskedDistiller',
            backbone=dict(type='PlainViT', **copy.deepcopy(VIT)),
            masking=dict(type='NoMasking'),
            teachers=dict(a=dict(FROZEN, seed=1), b=dict(FROZEN, seed=2)),
            objectives=dict(
                a_cls=dict(teacher='a', region='cls', **part),
                a=dict(teacher='a', region='all', **part),
                b=dict(teacher='b', region='all', normalize=dict(type='FixedStandardize'), **part),
            ),
            balance=balance,
        )
    ).double()
    model.begin_training(Progress(0, 10))
    return model


@pytest.mark.parametrize('balance, logged', [('TeacherDropping', 'b_kept'), ('RunningBalance', 'b_size')])
def test_distiller__logs_what_a_balance_does(balance, logged, images):
    """Nothing that is only logged counts in the loss: mmengine sums what has 'loss' in its name."""
    results = distiller(type=balance).loss(images)
    assert logged in results and not [name for name in results if 'loss' in name[1:] and not name.startswith('loss_')]
    assert {name for name in results if 'loss' in name} == {'loss_a_cls', 'loss_a', 'loss_b'}


def test_distiller__compiled_loss_is_the_same(images):
    """Statistics are left out of the graph: they are decided on the host."""
    torch.manual_seed(0)
    model = distiller(type='TeacherDropping')
    other = copy.deepcopy(model)
    compile_model(other, 'loss', 'eager')
    for step in range(2):
        found = []
        for one in (model, other):
            start_step(step)
            found.append(one.loss(images))
        for name, value in found[0].items():
            torch.testing.assert_close(found[1][name], value, rtol=1e-9, atol=1e-12)


def test_distiller__state_of_balance_and_statistics_is_in_its_checkpoint(images):
    model, other = (distiller(type='RunningBalance') for _ in range(2))
    for _ in range(2):
        model.loss(images)
    other.load_state_dict(model.state_dict())
    found, wanted = other.loss(images), model.loss(images)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def features(**taps):
    length = next(iter(taps.values())).shape[1]
    mask = TokenMask.from_hidden(torch.zeros(2, length - 1, dtype=torch.bool), length - 1)
    region = RegionTokens('all', True, torch.arange(length - 1).expand(2, -1))
    return TokenFeatures({name: Tokens(x) for name, x in taps.items()}, num_prefix=1, mask=mask), region


def test_residual_adaptor__is_radios():
    """Linear, x + Linear(GELU(LN(x))) twice, Linear(GELU(LN(x)))."""
    head = scatter_weights(ResidualAdaptor(in_width=6, out_width=5, grid=(2, 2), width=8, depth=2), 0.3).double()
    x_BND = torch.randn(2, 5, 6, dtype=torch.float64)
    given, region = features(output=x_BND)
    weights = dict(head.named_parameters())

    def layer(x, name):
        normed = F.layer_norm(x, (8,), weights[f'{name}.0.weight'], weights[f'{name}.0.bias'])
        return F.gelu(normed) @ weights[f'{name}.2.weight'].T + weights[f'{name}.2.bias']

    wanted = x_BND @ weights['embed.weight'].T + weights['embed.bias']
    for number in range(2):
        wanted = wanted + layer(wanted, f'layers.{number}')
    torch.testing.assert_close(head(given, ('output',), region), layer(wanted, 'predict'))


def test_ladder__sums_an_mlp_of_each_tap():
    head = scatter_weights(LadderHead(in_width=6, out_width=5, grid=(2, 2), num_taps=3, width=7, last_width=9)).double()
    taps = {f'block:{i}': torch.randn(2, 5, 6, dtype=torch.float64) for i in range(3)}
    given, region = features(**taps)
    wanted = 0
    for x_BND, mlp in zip(taps.values(), head.layers, strict=True):
        wanted = wanted + mlp[2](F.gelu(mlp[0](x_BND)))
    torch.testing.assert_close(head(given, tuple(taps), region), wanted)
    assert [mlp[0].out_features for mlp in head.layers] == [7, 7, 9]


@pytest.mark.parametrize('head', [ResidualAdaptor, LadderHead])
def test_heads__draw_new_weights(head):
    options = dict(num_taps=2) if head is LadderHead else {}
    made = head(in_width=6, out_width=5, grid=(2, 2), **options)
    before = copy.deepcopy(made.state_dict())
    made.reset_parameters()
    weights = [name for name, module in made.named_modules() if isinstance(module, nn.Linear)]
    assert weights and not any(
        torch.equal(before[f'{name}.weight'], made.state_dict()[f'{name}.weight']) for name in weights
    )


def test_cosine_smooth_l1__per_token_and_per_image():
    prediction, target = (3 * torch.randn(2, 4, 6, dtype=torch.float64) for _ in range(2))
    difference = (prediction - target).abs()
    near = torch.where(difference < 0.5, difference**2, difference - 0.25).mean(-1)  # beta = 0.5
    product = (prediction * target).sum(-1) / (prediction.norm(dim=-1) * target.norm(dim=-1))
    found = CosineSmoothL1Loss(cosine=0.9, smooth_l1=0.1, beta=0.5)(prediction, target)
    torch.testing.assert_close(found, 0.9 * (1 - product) + 0.1 * near)
    whole = (prediction * target).sum((1, 2)) / (prediction.norm(dim=(1, 2)) * target.norm(dim=(1, 2)))
    loss = CosineSmoothL1Loss(cosine=0.9, smooth_l1=0.1, beta=0.5, whole_image=True)
    torch.testing.assert_close(loss(prediction, target), 0.9 * (1 - whole)[:, None] + 0.1 * near)
    weight = torch.tensor([[1.0, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.float64)
    region = RegionTokens('hidden', False, torch.arange(4).expand(2, -1), weight)
    cut = F.cosine_similarity((prediction * weight[..., None]).flatten(1), (target * weight[..., None]).flatten(1))
    torch.testing.assert_close(loss(prediction, target, region), 0.9 * (1 - cut)[:, None] + 0.1 * near)


@pytest.mark.parametrize('by', ['spread', 'mean'])
def test_running__before_training_is_the_plain_mean(by):
    terms = two_teachers()
    found = RunningBalance(objectives=tuple(terms), by=by).eval()(terms)
    assert all(torch.equal(found[name], one.mean()) for name, one in terms.items())
