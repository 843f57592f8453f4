from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F

from mkd_plugin.evaluation.features import Feature, Features
from mkd_plugin.evaluation.linear import (
    LARS,
    SGD,
    Probes,
    ProbeSettings,
    evaluate_heads,
    run_epochs,
    shortened,
    train_probes,
)

A, B = Feature('block:0', 'cls'), Feature('block:0', 'mean')
BY_STEP = ProbeSettings(rates=(0.5, 5.0), epochs=4, warmup=1, batch_size=16, weight_decay=0.01, seed=3)


def classes(images: int, seed: int) -> Features:
    """Three overlapping classes in six dimensions of different scales, float64; B is another view of them."""
    generator = torch.Generator().manual_seed(seed)
    labels_N = torch.arange(images) % 3
    centres = torch.randn(3, 6, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    values = centres[labels_N] + torch.randn(images, 6, generator=generator, dtype=torch.float64)
    scale = torch.logspace(-1, 1, 6, dtype=torch.float64)
    return Features({A: values * scale + 3, B: (values @ values[:6]).tanh()}, labels_N)


def trained(train: Features, settings: ProbeSettings) -> Probes:
    which = list(train.values)
    with torch.no_grad():
        probes = Probes(len(which), 6, 3, settings, train.values[which[0]][:0])
        run_epochs(probes, train, settings)
    return probes


@pytest.mark.parametrize('lars', [False, True])
def test_train_probes__sweep_equals_heads_trained_alone(lars):
    train, settings = classes(50, 0), replace(BY_STEP, lars=lars)
    together = trained(train, settings)
    for row, feature in enumerate((A, B)):
        for column, rate in enumerate(settings.rates):
            alone = trained(
                Features({feature: train.values[feature]}, train.labels_N), replace(settings, rates=(rate,))
            )
            torch.testing.assert_close(
                together.weight_FRCD[row, column], alone.weight_FRCD[0, 0], rtol=1e-12, atol=1e-14
            )
            torch.testing.assert_close(together.bias_FRC[row, column], alone.bias_FRC[0, 0], rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(together.variance_FD[row], alone.variance_FD[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize('lars', [False, True])
def test_train_probes__equals_torchs_modules_and_optimizer(lars):
    """BatchNorm1d, Linear and SGD of torch on the same batches; LARS as a factor on the gradient."""
    train, settings = classes(50, 0), replace(BY_STEP, rates=(2.0,), lars=lars)
    found = trained(Features({A: train.values[A]}, train.labels_N), settings)
    norm, linear = nn.BatchNorm1d(6, eps=1e-6, affine=False).double(), nn.Linear(6, 3).double()
    nn.init.trunc_normal_(linear.weight, std=0.01, generator=torch.Generator().manual_seed(settings.seed))
    nn.init.zeros_(linear.bias)
    decay = [dict(params=linear.weight, weight_decay=0 if lars else 0.01), dict(params=linear.bias, weight_decay=0)]
    optimizer = torch.optim.SGD(decay, lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(settings.seed)
    for epoch in range(4):
        order = torch.randperm(50, generator=generator)
        for step in range(3):
            rows = order[step * 16 : step * 16 + 16]
            progress = epoch + step / 3
            share = progress if progress < 1 else (1 + math.cos(math.pi * (progress - 1) / 3)) / 2
            loss = F.cross_entropy(linear(norm(train.values[A][rows])), train.labels_N[rows])
            optimizer.zero_grad()
            loss.backward()
            if lars:
                slope = linear.weight.grad + 0.01 * linear.weight.detach()
                linear.weight.grad = slope * (0.001 * linear.weight.detach().norm() / slope.norm())
            for group in optimizer.param_groups:
                group['lr'] = 2.0 * share * 16 / 256
            optimizer.step()
    torch.testing.assert_close(found.weight_FRCD[0, 0], linear.weight.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.bias_FRC[0, 0], linear.bias.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.mean_FD[0], norm.running_mean)
    torch.testing.assert_close(found.variance_FD[0], norm.running_var)


def test_train_probes__full_batch_converges_to_scikit_learns_logistic_regression():
    train, val = classes(90, 0), classes(60, 1)
    strength = 0.02  # L2 on the mean loss; scikit-learn's C weighs the sum
    settings = ProbeSettings(rates=(256 / 90,), epochs=1500, warmup=0, batch_size=90, weight_decay=strength)
    one = Features({A: train.values[A]}, train.labels_N)
    found = trained(one, settings)
    other = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (strength * 90), tol=1e-10, max_iter=2000))
    other.fit(train.values[A].numpy(), train.labels_N.numpy())
    wanted = torch.from_numpy(other[-1].coef_)
    torch.testing.assert_close(found.weight_FRCD[0, 0], wanted, rtol=1e-4, atol=1e-5)
    heads = evaluate_heads(found, Features({A: val.values[A]}, val.labels_N), [A])
    assert heads[0].top1 == pytest.approx(100 * other.score(val.values[A].numpy(), val.labels_N.numpy()), abs=2)


def test_train_probes__heads_are_named_and_diverged_ones_have_no_score():
    settings = ProbeSettings(rates=(1.0, 1e300), epochs=3, warmup=0)
    heads = train_probes(classes(30, 0), classes(30, 1), settings)
    assert [(head.feature, head.rate) for head in heads] == [(A, 1.0), (A, 1e300), (B, 1.0), (B, 1e300)]
    assert heads[0].top1 > 60 and math.isnan(heads[1].top1)
    with pytest.raises(ValueError, match='All heads diverged'):
        train_probes(classes(30, 0), classes(30, 1), replace(settings, rates=(1e300,)))


def test_train_probes__bad_input():
    train = classes(30, 0)
    other = Features({A: train.values[A], B: train.values[B][:, :3]}, train.labels_N)
    with pytest.raises(ValueError, match="'block:0 mean': 3"):
        train_probes(other, other, SGD)
    one = Features({A: train.values[A][:1]}, train.labels_N[:1])
    with pytest.raises(ValueError, match='at least 2 training images, got 1'):
        train_probes(one, train, SGD)


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(rates=()), 'at least one'),
        (dict(rates=(0.0,)), 'above 0'),
        (dict(rates=(1.0,), epochs=5, warmup=5), 'warmup=5'),
        (dict(rates=(1.0,), batch_size=1), 'batch_size=1'),
    ],
)
def test_probe_settings__bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        ProbeSettings(**options)


def test_settings__maes_probe():
    """MAE, appendix A.1: LARS, base learning rate 0.1, batch 16384, 90 epochs, no weight decay."""
    assert LARS.lars and 0.1 in LARS.rates and LARS.batch_size == 16384
    assert (LARS.epochs, LARS.weight_decay) == (90, 0)
    assert shortened(LARS, epochs=9).warmup == 1
