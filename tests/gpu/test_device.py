"""What a GPU computes is what a CPU computes in float64."""

from __future__ import annotations

import gpu_benchmark_checks as checks
import pytest
import torch
from gpu_benchmark_device import BACKENDS, NETWORKS, NO_KERNEL
from torch.nn.attention import SDPBackend
from workload import read_config

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU: torch sees none')
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


def test_crops__are_within_two_levels_of_the_cpus():
    assert checks.crop_levels(CUDA, batch_size=128) <= 2
