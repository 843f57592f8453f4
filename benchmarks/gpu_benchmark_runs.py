"""Sections of gpu_benchmark.py that use the whole runner: loading images, a run of 60 iterations, and resuming it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from gpu_benchmark_steps import Row, Setup
from kill_resume import unequal
from kill_scenarios import EPOCHS, Scenario, build_config, write_data
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from photographs import write_photographs
from torchvision.io import ImageReadMode, decode_jpeg

from mkd_plugin.checkpoint.read import read_checkpoint
from mkd_plugin.datasets.shards.writing import Options, write_shards
from mkd_plugin.preflight.config import fit_to_device, move_data_root

FOLDER, SHARDS = (f'dbot/dbot_vit-base-p16_8xb512-2x800e_{kind}' for kind in ('folder', 'shards'))
EPOCHS_OF_RUN = 4


def photographs(setup: Setup, count: int) -> Path:
    """Write JPEGs of ImageNet's size; of each of a few hundred there are many links, all in the page cache."""
    folder = setup.folder / 'photographs'
    different = min(count, 4 if setup.tiny else 192)
    if not folder.exists():
        write_photographs(folder, different)
    files = sorted((folder / 'class').iterdir())[:different]
    for number in range(len(list((folder / 'class').iterdir())), count):
        os.link(files[number % different], folder / 'class' / f'{number:05d}.jpg')
    return folder


def config_on(setup: Setup, name: str, data: Path, workers: int) -> Config:
    """A config for these images, with a loader for this machine."""
    cfg = setup.config(name)
    move_data_root(cfg, str(data))
    cfg.train_dataloader.update(batch_size=setup.batch_size, num_workers=workers, persistent_workers=workers > 0)
    cfg.launcher = 'none'
    fit_to_device(cfg)
    return cfg


def pipeline(setup: Setup) -> Iterator[Row]:
    """Count images per second of loading, with all cores; then with the device's part, and decoding on the device."""
    init_default_scope('mmpretrain')
    cores = len(os.sched_getaffinity(0))
    workers = 1 if setup.tiny else cores
    files = photographs(setup, setup.batch_size * (2 if setup.tiny else 30))

    def load(name: str, data: Path, device: bool) -> Row:
        cfg = config_on(setup, name, data, workers)
        loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
        preprocessor = MODELS.build(cfg.data_preprocessor).to(setup.device)
        batches = iter(loader)
        next(batches)  # the workers have started
        start, images = time.perf_counter(), 0
        for batch in batches:
            images += len(preprocessor(batch, True)['inputs'] if device else batch['inputs'].table_B4)
        if setup.device.type == 'cuda':
            torch.cuda.synchronize()
        rate = images / (time.perf_counter() - start)
        return dict(images_per_s=rate, of_each_core=rate / cores, workers=workers)

    def packed() -> Row:
        shards = setup.folder / 'shards'
        write_shards(files, shards, options=Options(size=256, shard_size=1024))
        return load(SHARDS, shards, True)

    def on_the_device() -> Row:
        names = sorted((files / 'class').iterdir())[: setup.batch_size]
        data = [torch.frombuffer(bytearray(name.read_bytes()), dtype=torch.uint8) for name in names]
        decode = partial(decode_jpeg, mode=ImageReadMode.RGB, device=setup.device)
        decode(data)
        start = time.perf_counter()
        decode(data)
        if setup.device.type == 'cuda':
            torch.cuda.synchronize()
        return dict(images_per_s=len(data) / (time.perf_counter() - start))

    yield from setup.run({
        'files': lambda: load(FOLDER, files, False),
        'files, to normalised images on the device': lambda: load(FOLDER, files, True),
        'JPEGs decoded by the device': on_the_device,
        'shards of 256 pixels, to images on the device': packed,
    })  # fmt: skip


class Clock(Hook):
    """Notes when iterations begin."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Note the time; nothing waits for the device."""
        self.times.append(time.perf_counter())


def run(setup: Setup) -> Iterator[Row]:
    """Train by the shipped config, from JPEGs, with all hooks, over a promotion of the teacher."""

    def row(iterations: int) -> Row:
        workers = 1 if setup.tiny else min(16, len(os.sched_getaffinity(0)))
        images = photographs(setup, setup.batch_size * iterations // EPOCHS_OF_RUN)
        cfg = config_on(setup, FOLDER, images, workers)
        cfg.work_dir, cfg.log_level = str(setup.folder / 'run'), 'WARNING'
        cfg.train_cfg.max_epochs = EPOCHS_OF_RUN
        cfg.default_hooks.logger.interval = max(1, iterations // 12)
        cfg.default_hooks.checkpoint.interval = EPOCHS_OF_RUN // 2
        runner, clock = Runner.from_cfg(cfg), Clock()
        runner.register_hook(clock)
        start = time.perf_counter()
        runner.train()
        seconds = time.perf_counter() - start
        lines = [json.loads(line) for line in Path(cfg.work_dir, 'metrics.jsonl').read_text().splitlines()]
        steps = [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]
        return dict(
            iterations=runner.iter,
            seconds=seconds,
            images_per_s=setup.batch_size * len(steps) / sum(steps),
            median_images_per_s=setup.batch_size / median(steps[len(steps) // 3 :]),
            first_loss=lines[0]['loss'],
            last_loss=lines[-1]['loss'],
            waiting_for_data=median(line['data_time'] / line['time'] for line in lines if 'time' in line),
            stages=lines[-1]['stage'],
        )

    yield from setup.run({'the shipped config, from JPEGs': partial(row, 8 if setup.tiny else 60)})


def resume(setup: Setup) -> Iterator[Row]:
    """Compare a run resumed in its second stage with one that never stopped, and two equal runs."""

    def train(data: Path, name: str, deterministic: bool, checkpoint: Path | None = None) -> Path:
        cfg = build_config(Scenario('epochs', 0), data, setup.folder / name)
        cfg.randomness.deterministic = deterministic
        cfg.default_hooks.checkpoint.max_keep_ckpts = -1
        cfg.load_from, cfg.resume = (None, False) if checkpoint is None else (str(checkpoint), True)
        Runner.from_cfg(cfg).train()
        return setup.folder / name

    def row(deterministic: bool) -> Row:
        torch.use_deterministic_algorithms(False)  # the runner switches them on, and never off
        data = write_data('dbot', setup.folder)
        kind = 'deterministic' if deterministic else 'shipped'
        whole = train(data, f'{kind}-whole', deterministic)
        again = train(data, f'{kind}-again', deterministic)
        half = whole / f'epoch_{EPOCHS // 2 + 1}.pth'
        resumed = train(data, f'{kind}-resumed', deterministic, half)
        states = [read_checkpoint(folder / f'epoch_{EPOCHS}.pth') for folder in (whole, again, resumed)]
        wanted, *others = ({key: state[key] for key in ('state_dict', 'optimizer')} for state in states)
        found = {name: unequal(wanted, other) for name, other in zip(('again', 'resumed'), others, strict=True)}
        largest = {f'{name}_differs_by': distance(wanted, other) for name, other in zip(found, others, strict=True)}
        return dict(values_unequal_again=len(found['again']), values_unequal_resumed=len(found['resumed']), **largest)

    rows = {'deterministic kernels': partial(row, True)}
    rows |= {} if setup.tiny else {'kernels as shipped': partial(row, False)}
    yield from setup.run(rows)
    torch.use_deterministic_algorithms(False)


def distance(first: dict[str, Any], second: dict[str, Any]) -> float:
    """Largest difference between the weights of two checkpoints."""
    pairs = ((first['state_dict'][name], second['state_dict'][name]) for name in first['state_dict'])
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)
