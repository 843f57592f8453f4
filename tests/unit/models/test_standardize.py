"""Standardisations with statistics against NumPy, on several processes, and over checkpoints."""

from __future__ import annotations

import multiprocessing
import os

import numpy as np
import pytest
import torch
from helpers.ranks import free_port
from scipy.linalg import hadamard as sylvester
from torch.nn import functional as F

from mkd_plugin.models.protocols import Progress
from mkd_plugin.models.standardize import METHODS, FixedStandardize, RunningStandardize, hadamard
from mkd_plugin.structures import RegionTokens


def correlated(*size: int) -> torch.Tensor:
    """Tokens whose channels differ in scale, are correlated, and have a large mean."""
    mix = torch.randn(size[-1], size[-1], dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return torch.randn(*size, dtype=torch.float64) @ (mix * torch.linspace(0.1, 5, size[-1])) + 20


def covariance(y: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.cov(y.flatten(0, -2).numpy(), rowvar=False))


# Sylvester 64; Paley I 12, 20, 44, 96 … 1408; Paley II 36; 1152 = 32 · 36
@pytest.mark.parametrize('size', [1, 2, 12, 20, 36, 64, 96, 192, 384, 640, 768, 1024, 1152, 1280, 1408, 1536])
def test_hadamard__is_orthogonal_and_flat(size):
    matrix = hadamard(size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(matrix.abs(), torch.full_like(matrix, size**-0.5), rtol=1e-12, atol=0)


def test_hadamard__of_a_power_of_two_is_scipys():
    np.testing.assert_array_equal(hadamard(16).numpy() * 4, sylvester(16))


@pytest.mark.parametrize('size', [7, 30, 92])  # 92 would need another construction
def test_hadamard__without_a_known_one_is_orthogonal_and_always_the_same(size):
    matrix = hadamard(size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.equal(matrix, hadamard(size))


@pytest.mark.parametrize('width', [12, 16])
def test_phi__is_its_formula(width):
    """W = mean(Λ)^−½ H Uᵀ by NumPy; an eigenvector may have either sign, so squares of Uᵀx are compared through H."""
    target = correlated(3, 40, width)
    module = FixedStandardize(width=width, batches=1)
    found = module(target)
    torch.testing.assert_close(covariance(found).diagonal(), torch.ones(width).double(), rtol=1e-9, atol=0)
    rows = target.flatten(0, 1).numpy()
    values, vectors = np.linalg.eigh(np.cov(rows, rowvar=False))
    rotated = np.sqrt(values.mean()) * found.flatten(0, 1).numpy() @ hadamard(width).numpy()  # = (x − μ)·U, up to signs
    np.testing.assert_allclose(np.abs(rotated), np.abs((rows - rows.mean(0)) @ vectors), rtol=1e-7, atol=1e-9)
    distances = [torch.pdist(x.flatten(0, 1)) for x in (target, found)]
    scale = values.mean() ** -0.5  # one scale for all differences
    torch.testing.assert_close(distances[1], distances[0] * scale, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('method', METHODS)
def test_fixed__has_the_covariance_of_its_method_and_is_inverted(method):
    target = correlated(2, 50, 12)
    module = FixedStandardize(width=12, method=method, batches=1)
    found = module(target)
    own, eye = covariance(target), torch.eye(12).double()
    wanted = {'global': own / own.diagonal().mean(), 'channel': torch.from_numpy(np.corrcoef(target.flatten(0, 1).T))}
    if method == 'phi':
        torch.testing.assert_close(covariance(found).diagonal(), torch.ones(12).double())
    else:
        torch.testing.assert_close(covariance(found), wanted.get(method, eye), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found.mean((0, 1)), torch.zeros(12).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(module.invert(found), target, rtol=1e-8, atol=1e-8)
    if method == 'zca':  # the only whitening that is symmetric
        torch.testing.assert_close(module.transform, module.transform.T, rtol=1e-8, atol=1e-10)


def test_fixed__statistics_are_those_of_the_first_batches_and_then_stay():
    batches = [correlated(2, 20, 8) for _ in range(5)]
    module = FixedStandardize(width=8, method='channel', batches=3)
    for target in batches:
        module(target)
    rows = torch.cat([batch.flatten(0, 1) for batch in batches[:3]])
    torch.testing.assert_close(module(batches[4]), (batches[4] - rows.mean(0)) / rows.std(0), rtol=1e-9, atol=1e-9)
    assert module.batches == 3


def test_fixed__a_constant_channel_stays_finite():
    target = correlated(2, 20, 8)
    target[..., 3] = 1.0
    module = FixedStandardize(width=8, method='channel', batches=1)
    found = module(target)
    assert found.isfinite().all() and not found[..., 3].any()
    torch.testing.assert_close(module.invert(found), target)


def test_fixed__padding_does_not_count():
    target, weight = correlated(2, 20, 8), (torch.rand(2, 20) > 0.4).float()
    target[weight == 0] = 1e6
    module = FixedStandardize(width=8, method='channel', batches=1)
    module(target, region=RegionTokens('hidden', False, torch.zeros(2, 20, dtype=torch.long), weight))
    torch.testing.assert_close(module.mean, target[weight > 0].mean(0), rtol=1e-9, atol=0)
    torch.testing.assert_close(module.transform.diagonal(), 1 / target[weight > 0].std(0), rtol=1e-7, atol=0)


def test_fixed__resumes_in_the_middle_of_its_batches_bit_by_bit():
    batches = [correlated(2, 20, 12).float() for _ in range(6)]
    whole, first, second = (FixedStandardize(width=12, batches=5) for _ in range(3))
    wanted = [whole(target) for target in batches]
    found = [first(target) for target in batches[:3]]
    second.load_state_dict(first.state_dict())
    found += [second(target) for target in batches[3:]]
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert found[0].dtype == torch.float32


def test_fixed__stays_in_single_precision_under_autocast():
    target = correlated(2, 50, 12).float()
    module = FixedStandardize(width=12, batches=1)
    wanted = module(target)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(module(target), wanted)


@pytest.mark.parametrize('module', [FixedStandardize(width=4), RunningStandardize(width=4, share=0.1)])
def test_statistics__are_asked_for_before_they_exist(module):
    module.eval()
    for ask in (module, module.invert):
        with pytest.raises(ValueError, match='has no statistics yet: they are estimated in training'):
            ask(torch.zeros(1, 2, 4))


def test_fixed__refuses_unknown_methods_and_no_batches():
    with pytest.raises(ValueError, match="method='phis': use one of"):
        FixedStandardize(width=4, method='phis')
    with pytest.raises(ValueError, match='batches=0: it must be at least 1'):
        FixedStandardize(width=4, batches=0)


def test_objective__refuses_statistics_of_relations_and_predictions(build_distiller):
    normalize = dict(type='FixedStandardize')
    relation = dict(tap='relation:-1', student='relation:-1', head=None, region='visible')
    for change in (relation, dict(normalize_prediction=True)):
        with pytest.raises(ValueError, match='FixedStandardize has statistics of the teacher'):
            build_distiller(objective=dict(normalize=normalize, **change))


def test_objective__fixed_statistics_do_not_outlive_a_stage(build_distiller):
    fixed = dict(normalize=dict(type='FixedStandardize'))
    build_distiller(objective=fixed)
    with pytest.raises(ValueError, match="each stage of 'boot' has another. Use RunningStandardize"):
        build_distiller(objective=fixed, teachers=dict(boot=dict(type='BootstrappedTeacher', stages=2)))


def test_running__one_token_is_no_deviation():
    module = RunningStandardize(width=6, share=0.5)
    module(correlated(1, 1, 6))
    assert module(correlated(2, 20, 6)).isfinite().all()


def test_running__is_unics_average():
    """Raw first; then by the averages before the batch; σ unbiased + eps is averaged itself; the share follows a cosine."""
    batches, eps = [correlated(2, 20, 6) for _ in range(4)], 1e-6
    module = RunningStandardize(width=6, share=dict(type='CosineRamp', start=1.0, end=0.001))
    mean = std = None
    for step, target in enumerate(batches):
        module.set_progress(Progress(step, 4))
        share = 0.001 + (1 - 0.001) * (1 + np.cos(np.pi * step / 4)) / 2
        rows = target.flatten(0, 1)
        wanted = target if step == 0 else (target - mean) / (std + eps)
        torch.testing.assert_close(module(target), wanted, rtol=1e-9, atol=1e-9)
        batch = rows.mean(0), rows.std(0) + eps
        mean, std = (
            batch
            if step == 0
            else [old * (1 - share) + new * share for old, new in zip((mean, std), batch, strict=True)]
        )
    torch.testing.assert_close(module.invert(module.eval()(target)), target, rtol=1e-9, atol=1e-9)


def test_running__its_share_follows_the_run(build_distiller, images):
    share = dict(type='CosineRamp', start=1.0, end=0.5)
    model = build_distiller(objective=dict(normalize=dict(type='RunningStandardize', share=share)))
    model.begin_training(Progress(10, 10))
    assert model.objectives['feature'].normalizations[0].share == 0.5
    model._steps_not_followed = 0
    model.loss(images)
    with pytest.raises(ValueError, match="schedule of objective 'feature' should change"):
        model.loss(images)


def on_rank(rank: int, ranks: int, port: int, queue: multiprocessing.SimpleQueue) -> None:
    """Two steps of both modules on a process's rows of a batch."""
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.distributed.init_process_group('gloo', rank=rank, world_size=ranks)
    queue.put((rank, states(rank, ranks)))
    torch.distributed.destroy_process_group()


def states(rank: int, ranks: int) -> dict[str, list]:
    torch.manual_seed(0)
    modules = FixedStandardize(width=12, batches=2), RunningStandardize(width=12, share=0.3)
    for _ in range(2):
        target = correlated(4, 20, 12)
        for module in modules:
            module(target[rank::ranks])
    return {f'{type(m).__name__}.{name}': value.tolist() for m in modules for name, value in m.state_dict().items()}


def test_statistics__are_the_same_on_every_process_and_those_of_one():
    context, port = multiprocessing.get_context('fork'), free_port()
    queue = context.SimpleQueue()
    processes = [context.Process(target=on_rank, args=(rank, 2, port, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(queue.get() for _ in processes)
    for process in processes:
        process.join(30)
    assert found[0] == found[1]
    for name, value in states(0, 1).items():
        np.testing.assert_allclose(found[0][name], value, rtol=1e-8, atol=1e-9)


def test_running__equals_layer_statistics_of_torch():
    """With a share of 1 the second pass of a batch is batch norm with unbiased variance."""
    target = correlated(2, 30, 6)
    module = RunningStandardize(width=6, share=1.0, eps=0.0)
    module(target)
    rows = target.flatten(0, 1)
    wanted = F.batch_norm(rows, rows.mean(0), rows.var(0), eps=0.0).view_as(target)
    torch.testing.assert_close(module(target), wanted, rtol=1e-9, atol=1e-9)
