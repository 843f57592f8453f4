"""Shared tiny fixtures: a network of 32 × 3, images of 16 px in patches of 4 (a grid of 4 × 4, so L = 16)."""

from __future__ import annotations

import copy
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers.networks import DBOT, MAE, VIT, scatter_weights
from helpers.tiny_runs import one_thread, tiny_run, train, written_digits  # noqa: F401 - fixtures for every folder
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import Tensor, nn

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell does that to what it starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope='session')
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Lists and blocks of shards lie in a folder of the test run, also those of the processes that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('MKD_CACHE_DIR', str(tmp_path_factory.mktemp('cache')))
        yield


@pytest.fixture(autouse=True)
def own_scope() -> Iterator[None]:
    """A run leaves its host's scope behind, in which the next test would look for plain names; a rehearsal leaves its logger,
    which writes to that test's closed stream.
    """
    yield
    DefaultScope._instance_dict.clear()
    MMLogger._instance_dict.pop('rehearsal', None)


@pytest.fixture(autouse=True)
def own_signal_handlers() -> Iterator[None]:
    """A hook that a test drives without a run leaves its handlers behind, and processes forked later would ignore SIGTERM."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        if handler is not None and signal.getsignal(number) != handler:
            signal.signal(number, handler)


@pytest.fixture(autouse=True, scope='session')
def own_run_names() -> Iterator[None]:
    """Number the runs that start in one second: mmengine gives runs of one name the same message hub and visualizer."""
    started: Counter[str] = Counter()
    setup_env = Runner.setup_env

    def numbered(runner: Runner, env_cfg: dict[str, Any]) -> None:
        setup_env(runner, env_cfg)
        started[second := runner.timestamp] += 1
        if started[second] > 1:
            runner._timestamp = f'{second}_{started[second]}'

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, 'setup_env', numbered)
        yield


@pytest.fixture
def vit_options() -> dict[str, Any]:
    """Options of the tiny ViT."""
    return copy.deepcopy(VIT)


@pytest.fixture
def images() -> Tensor:
    """Three normalised images, float64."""
    return torch.randn(3, 3, 16, 16, dtype=torch.float64)


@pytest.fixture
def build_distiller() -> Callable[..., Any]:
    """Builds a tiny dBOT (or MAE) in float64, whose student has left the weights that its teacher copied.

    Args:
        base: 'dbot' or 'mae'.
        objective: Options that replace some of the one objective's.
        overrides: Whole arguments of the algorithm to replace.
    """
    from mkd_plugin.models.protocols import Progress
    from mkd_plugin.registry import MODELS

    def build(base: str = 'dbot', *, objective: dict[str, Any] | None = None, **overrides: Any) -> nn.Module:
        cfg = copy.deepcopy({**DBOT, **(MAE if base == 'mae' else {}), **overrides})
        if objective is not None:
            next(iter(cfg['objectives'].values())).update(objective)
        model = MODELS.build(dict(type='MaskedDistiller', **cfg)).double()
        model.begin_training(Progress(0, 1))
        return scatter_weights(model)

    return build
