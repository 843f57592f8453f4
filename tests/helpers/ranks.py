"""Training on several processes for tests: `mkd train` as torchrun would start it, with the imports done once."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS
from mmpretrain.structures import DataSample

from mkd_plugin.engine import saving
from mkd_plugin.models import MaskedDistiller

ROOT = Path(__file__).resolve().parents[2]
CONTEXT = multiprocessing.get_context('forkserver')
PRELOAD = ['mmpretrain.models', 'mmpretrain.datasets', 'mmpretrain.engine', 'mkd_plugin.models', 'mkd_plugin.engine']

# A tiny dBOT in two stages, six steps an epoch on two processes.
CONFIG = """
_base_ = [{bases}]
custom_imports = dict(imports=['mkd_plugin', 'helpers.ranks'])
visualizer, log_level = None, 'WARNING'
model = dict(backbone=dict(arch=dict(width=16, depth=2, num_heads=2), patch_size=8, drop_path_rate=0.3),
             objectives=dict(feature=dict(head=dict(depth=1, width=16, num_heads=2))))
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False,
                        dataset=dict(data_root='{digits}', indices=24))
custom_hooks = []
param_scheduler = []
train_cfg = dict(max_epochs=4)
default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=1), preemption=dict(agree_every=1))
{more}
"""


@HOOKS.register_module()
class SignalAt(Hook):
    """Sends itself a signal after a step, on the ranks named, the first time that the run comes there.

    ``launcher`` sends it to the launcher instead, as Ctrl-C does: torchrun gives each rank a session of its own.
    """

    def __init__(self, step: int, name: str, ranks: list[int], launcher: bool = False) -> None:
        self.step, self.signal, self.ranks, self.launcher = step, signal.Signals[name], ranks, launcher

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        marker = Path(runner.work_dir, f'signalled_{runner.rank}_{self.step}')
        if runner.iter + 1 == self.step and runner.rank in self.ranks and not marker.exists():
            marker.touch()
            if self.launcher:
                time.sleep(1)  # fingers are slower than these steps
                os.killpg(os.getpgid(os.getppid()), self.signal)
            else:
                os.kill(os.getpid(), self.signal)


@MODELS.register_module()
class SameOnAnyRank(MaskedDistiller):
    """A model in float64 whose masks depend on the image alone, so that any number of processes computes the same."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.double()

    def loss(self, inputs: Any, data_samples: Any = None, **_: Any) -> dict[str, torch.Tensor]:
        images = (inputs if isinstance(inputs, torch.Tensor) else inputs[0]).double()
        samples = []
        for image in images:
            draw = torch.Generator().manual_seed(int(image.abs().sum() * 1e6))
            order = torch.rand(self.masking.num_patches, generator=draw).argsort()
            samples.append(DataSample(mask=order >= self.masking.num_visible))
        return super().loss(images, samples)


@HOOKS.register_module()
class Shares(Hook):
    """Writes down which numbers a process holds between two steps: of each parameter, and of the moments."""

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        states = runner.optim_wrapper.optimizer.state.values()
        held = dict(runner.model.named_parameters(), moments=[m for state in states for m in state.values() if m.ndim])
        path = Path(runner.work_dir, f'share_{runner.rank}.json')
        path.write_text(json.dumps({name: numbers_of(value) for name, value in held.items()}))


def numbers_of(value: Any) -> int:
    """Numbers in this process's share of a tensor, or of a list of them."""
    if isinstance(value, list):
        return sum(map(numbers_of, value))
    return value.to_local().numel() if hasattr(value, 'to_local') else value.numel()


@HOOKS.register_module()
class SavesOften(Hook):
    """Lets checkpoints hold training for as long as they do, and notes which were there by time, as folders."""

    def before_train(self, runner: Any) -> None:
        saving.SHARE = 100.0

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if Path(runner.work_dir, 'recent.pth').is_dir():
            Path(runner.work_dir, f'recent_{runner.rank}').touch()


@HOOKS.register_module()
class Decays(Hook):
    """Writes down the weight decay of every group of parameters."""

    def before_train(self, runner: Any) -> None:
        decays = [group['weight_decay'] for group in runner.optim_wrapper.param_groups]
        Path(runner.work_dir, f'decays_{runner.rank}').write_text(str(decays))


def write_config(folder: Path, digits: Path, *, bases: tuple[str, ...] = (), more: str = '') -> Path:
    """A config file of the tiny run."""
    paths = [ROOT / 'configs/dbot/dbot_digits.py', *(ROOT / 'configs/_base_' / base for base in bases)]
    path = folder / 'config.py'
    path.write_text(CONFIG.format(bases=', '.join(f"'{path}'" for path in paths), digits=digits, more=more))
    return path


def free_port() -> int:
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return int(found.getsockname()[1])


def train(config: Path, work_dir: Path, *options: str, ranks: int = 2) -> list[int | None]:
    """Exit codes of the processes of a run; what they say is in ``rank_….txt`` of its folder."""
    CONTEXT.set_forkserver_preload(PRELOAD)
    work_dir.mkdir(parents=True, exist_ok=True)
    launcher = [] if ranks == 1 else ['--launcher', 'pytorch']
    arguments = [str(config), '--work-dir', str(work_dir), *launcher, *options]
    port = free_port()
    processes = [CONTEXT.Process(target=one_rank, args=(rank, ranks, port, arguments)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def one_rank(rank: int, ranks: int, port: int, arguments: list[str]) -> None:
    """Train as one of torchrun's processes would."""
    log = os.open(Path(arguments[2], f'rank_{rank}.txt'), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    names = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_PORT', 'OMP_NUM_THREADS')
    os.environ.update(zip(names, map(str, (rank, rank, ranks, port, 1)), strict=True), MASTER_ADDR='127.0.0.1')
    import torch

    torch.set_num_threads(1)
    from mkd_cli.train import main

    sys.exit(main(arguments))
