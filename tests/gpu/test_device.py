"""What a GPU computes is what a CPU computes in float64."""

from __future__ import annotations

from functools import partial

import gpu_benchmark_checks as checks
import pytest
import torch
from gpu_benchmark_device import BACKENDS, NETWORKS, NO_KERNEL
from torch.nn.attention import SDPBackend
from torch.nn.attention.flex_attention import flex_attention
from workload import read_config

from mkd_plugin.models.vit.attention import attend, attend_by_flex

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')]
CUDA = torch.device('cuda')


@pytest.mark.parametrize('dtype', list(checks.BOUNDS), ids=str)
@pytest.mark.parametrize('config', checks.METHODS.values(), ids=checks.METHODS)
def test_loss__and_gradients_are_those_of_float64(config, dtype):
    errors = checks.method_errors(read_config(config), CUDA, dtype)
    assert all(error <= bound for error, bound in zip(errors, checks.BOUNDS[dtype], strict=True)), errors


@pytest.mark.parametrize('network', NETWORKS)
@pytest.mark.parametrize('kind', BACKENDS)
def test_attention__of_every_backend_is_that_of_float64(kind, network):
    dtype = torch.float32 if BACKENDS[kind] == SDPBackend.MATH else torch.bfloat16
    try:
        error = checks.attention_error(BACKENDS[kind], CUDA, dtype, network)
    except RuntimeError as refused:
        if not NO_KERNEL.search(str(refused)):
            raise
        pytest.skip(f'this GPU has no {kind} kernel for {NETWORKS[network]}')
    assert error <= (1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('some', [False, True], ids=['all rows', 'some rows'])
def test_attend_by_flex__compiled_is_attention_with_a_bias_in_float64(some, dtype):
    """MaskDistill's sizes; values and gradients, that of the bias included."""
    flex = torch.compile(flex_attention, dynamic=False)
    rows = torch.stack([torch.randperm(197)[:79] for _ in range(4)]) if some else None
    shape = (4, 12, 197, 64)
    inputs = [torch.randn(4, 12, 79 if some else 197, 64), torch.randn(shape), torch.randn(shape)]
    inputs.append(torch.randn(1, 12, 197, 197))
    results = []
    for compute, device, kind in ((attend, 'cpu', torch.float64), (partial(attend_by_flex, flex), 'cuda', dtype)):
        given = [value.to(device, kind).requires_grad_() for value in inputs]
        given[3] = inputs[3].to(device, torch.promote_types(kind, torch.float32)).requires_grad_()
        out = compute(*given, None if rows is None else rows.to(device))
        grads = torch.autograd.grad(out.double().square().sum(), given)
        results.append([value.double().cpu() for value in (out, *grads)])
    for wanted, found in zip(*results, strict=True):
        assert (found - wanted).norm() <= (1e-2 if dtype == torch.bfloat16 else 2e-3) * wanted.norm()


def test_precision__of_a_step_stays_within_the_documented_bounds():
    """Loss and gradients of dBOT against float64; float8 where the GPU has it."""
    kinds = ['bfloat16', *(['fp8'] if torch.cuda.get_device_capability() >= (8, 9) else [])]
    for teacher in kinds:
        precision = dict(residual='bfloat16', teacher=teacher)
        cfg = read_config(checks.METHODS['dBOT'])
        errors = checks.method_errors(cfg, CUDA, torch.bfloat16, precision=precision)
        assert errors.loss <= 1e-2 and errors.gradient <= (0.2 if teacher == 'fp8' else 5e-2), (teacher, errors)


def test_crops__are_within_two_levels_of_the_cpus():
    assert checks.crop_levels(CUDA, batch_size=128) <= 2
