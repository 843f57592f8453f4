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
from timing import timed
from torchvision.io import ImageReadMode, decode_jpeg

from mkd_plugin.checkpoint.read import read_checkpoint
from mkd_plugin.datasets.shards.writing import Options, write_shards
from mkd_plugin.preflight.config import fit_to_device, move_data_root

FOLDER, SHARDS = (f'dbot/dbot_vit-base-p16_8xb512-2x800e_{kind}' for kind in ('folder', 'shards'))
EPOCHS_OF_RUN = 2  # each begins with waiting for the workers
ROUNDS = 10  # batches that each worker loads; two are drawn ahead


def photographs(setup: Setup, count: int) -> Path:
    """Make a folder of so many JPEGs of ImageNet's size: links to a few hundred, all in the page cache."""
    originals, folder = setup.folder / 'originals', setup.folder / f'photographs-{count}'
    if not originals.exists():
        write_photographs(originals, 4 if setup.tiny else 192)
    if not folder.exists():
        files = sorted((originals / 'class').iterdir())
        (folder / 'class').mkdir(parents=True)
        for number in range(count):
            os.link(files[number % len(files)], folder / 'class' / f'{number:05d}.jpg')
    return folder


def config_on(setup: Setup, name: str, data: Path, workers: int) -> Config:
    """A config for these images, with a loader for this machine."""
    cfg = setup.config(name)
    move_data_root(cfg, str(data))
    cfg.train_dataloader.update(batch_size=setup.batch_size, num_workers=workers, persistent_workers=workers > 0)
    cfg.launcher = 'none'
    fit_to_device(cfg)
    return cfg


def loading_rate(setup: Setup, name: str, data: Path, workers: int, *, device: bool) -> Row:
    """Count images per second of loading by a config, to normalised images on the device if wanted."""
    cfg = config_on(setup, name, data, workers)
    repeated = dict(type='RepeatDataset', dataset=cfg.train_dataloader.dataset, times=ROUNDS)
    loader = Runner.build_dataloader({**cfg.train_dataloader, 'dataset': repeated}, seed=0)
    preprocessor = MODELS.build(cfg.data_preprocessor).to(setup.device)

    def take(batch: Any) -> int:
        return len(preprocessor(batch, True)['inputs'] if device else batch['inputs'].table_B4)

    batches = iter(loader)
    for _ in range(2 * workers):  # drawn ahead, while the workers started
        take(next(batches))
    images: list[int] = []
    seconds = timed(lambda: images.extend(map(take, batches)), setup.device).seconds
    rate = sum(images) / seconds
    return dict(images_per_s=rate, of_each_core=rate / len(os.sched_getaffinity(0)), workers=workers)


def pipeline(setup: Setup) -> Iterator[Row]:
    """Count images per second of loading, with all cores; then with the device's part, and decoding on the device."""
    init_default_scope('mmpretrain')
    workers = 1 if setup.tiny else len(os.sched_getaffinity(0))
    files = photographs(setup, setup.batch_size * workers)
    load = partial(loading_rate, setup, workers=workers)

    def packed() -> Row:
        shards = setup.folder / 'shards'
        write_shards(files, shards, options=Options(size=256, shard_size=1024), workers=workers)
        return load(SHARDS, shards, device=True)

    def on_the_device() -> Row:
        names = sorted((files / 'class').iterdir())[: setup.batch_size]
        data = [torch.frombuffer(bytearray(name.read_bytes()), dtype=torch.uint8) for name in names]
        decode = partial(decode_jpeg, mode=ImageReadMode.RGB, device=setup.device)
        decode(data)
        return dict(images_per_s=len(data) / timed(lambda: decode(data), setup.device).seconds)

    yield from setup.run({
        'files': partial(load, FOLDER, files, device=False),
        'files, to normalised images on the device': partial(load, FOLDER, files, device=True),
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
        within = largest['resumed_differs_by'] <= 10 * max(largest['again_differs_by'], 1e-6)
        if deterministic:
            within = not found['again'] and not found['resumed']
        counts = {f'values_unequal_{name}': len(names) for name, names in found.items()}
        return dict(**counts, **largest, within=within)

    rows = {'deterministic kernels': partial(row, True)}
    rows |= {} if setup.tiny else {'kernels as shipped': partial(row, False)}
    yield from setup.run(rows)
    torch.use_deterministic_algorithms(False)


def distance(first: dict[str, Any], second: dict[str, Any]) -> float:
    """Largest difference between the weights of two checkpoints."""
    pairs = ((first['state_dict'][name], second['state_dict'][name]) for name in first['state_dict'])
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)
