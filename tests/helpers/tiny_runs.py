"""Tiny runs on the embedded digits: those of the kill test, two stages of two epochs of six iterations of four images."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

kill_resume = importlib.import_module('kill_resume')


@pytest.fixture(scope='session')
def written_digits(tmp_path_factory) -> Path:
    from mkd_plugin.datasets import write_digits

    return write_digits(tmp_path_factory.mktemp('data') / 'digits')


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny_run(written_digits, one_thread) -> Callable[..., Config]:
    """Config of a tiny run, counted in 'epochs' or 'iterations'; the log has a line every ``interval`` iterations."""

    def build(work_dir: Path, loop: str = 'epochs', *, interval: int = 4, **changes: Any) -> Config:
        cfg = kill_resume.build_config(kill_resume.Scenario(loop, 0), written_digits, work_dir)
        cfg.default_hooks.logger.interval = interval
        cfg.merge_from_dict(changes)
        return cfg

    return build


class At(Hook):
    """Does something after an iteration, before any other hook."""

    priority = 'HIGHEST'

    def __init__(self, step: int, action: Callable[[Runner, Any], Any]) -> None:
        self.step, self.action = step, action

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.step:
            self.action(runner, outputs)


@pytest.fixture
def train() -> Callable[..., Runner]:
    """Trains a config; ``at=(step, action)`` interferes, ``hooks`` watch."""

    def run(cfg: Config, *hooks: Hook, at: tuple[int, Callable[..., Any]] | None = None) -> Runner:
        runner = Runner.from_cfg(cfg)
        for hook in [*hooks, *([At(*at)] if at else [])]:
            runner.register_hook(hook)
        runner.train()
        return runner

    return run
