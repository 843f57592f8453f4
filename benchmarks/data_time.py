"""Compare the throughput of this package's input pipeline with torchvision's ImageFolder, in images per second and core.

    python benchmarks/data_time.py [--images 256] [--pairs 7] [--json FILE]

The data are generated JPEGs of 500 × 375 pixels and about 110 kB (ImageNet's mean), and the same with a shorter side of 256
pixels, as files, as shards and as shards of raw pixels. torchvision runs ImageFolder, RandomResizedCrop(224, (0.2, 1),
bicubic), flip, ToTensor and Normalize; ours runs the data set, sample order, collation and preprocessor of the shipped
configs. Everything runs in turn on one core of this process, in reverse order every other round, with files in the page
cache. Times are processor times, which other load on the machine affects less than wall-clock times. Ratios are computed pair
by pair.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from mmengine.fileio import get
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, FUNCTIONS, MODELS, init_default_scope
from photographs import write_photographs
from PIL import Image
from rich.console import Console
from rich.table import Table
from timing import pairwise
from torch.utils.data import DataLoader, RandomSampler
from torchvision import datasets, transforms

import mkd_plugin
from mkd_plugin.datasets import ShardDataset
from mkd_plugin.datasets.loading import decode
from mkd_plugin.datasets.shards.writing import Options, write_shards
from mkd_plugin.engine.exact_resume import make_exact

BATCH = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CONFIG = 'dbot/dbot_vit-base-p16_8xb512-2x800e_'
REFERENCE = 'torchvision, 500 × 375'
TARGETS = {'ours, 500 × 375 files': 1.5, 'ours, 256-px shards': 2.8}


def torchvision_pipeline(folder: Path) -> Callable[[], object]:
    """One epoch of torchvision's ImageFolder."""
    chain = [
        transforms.RandomResizedCrop(224, scale=(0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    data = datasets.ImageFolder(str(folder), transforms.Compose(chain))
    loader = DataLoader(data, batch_size=BATCH, sampler=RandomSampler(data))
    return lambda: exhaust(loader)


def our_pipeline(name: str, folder: Path, *, device: bool = True) -> Callable[[], object]:
    """One epoch of a shipped config's data.

    Args:
        name: Last part of the config's name.
        folder: The images, or shards.
        device: Whether to run the preprocessor as well.
    """
    cfg = mkd_plugin.get_config(CONFIG + name)
    cfg.train_dataloader.dataset.data_root = str(folder)
    data, collate = DATASETS.build(cfg.train_dataloader.dataset), FUNCTIONS.get(cfg.train_dataloader.collate_fn.type)
    loader = DataLoader(data, batch_size=BATCH, sampler=RandomSampler(data), collate_fn=collate)
    exact = make_exact(loader, seed=0, position=lambda: (0, 0), endless=False)
    preprocessor = MODELS.build(cfg.data_preprocessor)
    return lambda: exhaust(preprocessor(batch, True) if device else batch for batch in exact)


def exhaust(items: Iterable[object]) -> None:
    """Iterate without keeping anything."""
    for _ in items:
        pass


def decode_all(decoder: Callable[[Path], object], folder: Path) -> Callable[[], object]:
    """Read and decode every file of a folder."""
    paths = sorted(folder.rglob('*.jpg'))
    return lambda: exhaust(decoder(path) for path in paths)


def with_pillow(path: Path) -> object:
    """Read a file as torchvision's ImageFolder does."""
    with path.open('rb') as file:
        return Image.open(file).convert('RGB')


def contestants(root: Path, images: int) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """The timed functions by name, and the mean sizes of the files in kB."""
    files, shards, small = root / 'files', root / 'shards', root / 'small' / 'class'
    size = write_photographs(files, images)
    write_shards(files, shards, options=Options(size=256, shard_size=100))
    write_shards(files, root / 'raw', options=Options(size=256, shard_size=100, raw=True))
    small.mkdir(parents=True)
    packed = ShardDataset(data_root=str(shards))
    for number in range(images):
        (small / f'{number:05d}.jpg').write_bytes(get(packed.get_data_info(number)['img_path']))
    small_size = sum(path.stat().st_size for path in small.iterdir()) / images
    runs = {
        REFERENCE: torchvision_pipeline(files),
        'ours, 500 × 375 files': our_pipeline('folder', files),
        'torchvision, 256-px files': torchvision_pipeline(small.parent),
        'ours, 256-px shards': our_pipeline('shards', shards),
        'ours, 256-px raw shards': our_pipeline('shards', root / 'raw'),
        'ours, 500 × 375 files, without the device': our_pipeline('folder', files, device=False),
        'ours, 256-px shards, without the device': our_pipeline('shards', shards, device=False),
        'Pillow decodes 500 × 375': decode_all(with_pillow, files),
        'we decode 500 × 375': decode_all(lambda path: decode(path.read_bytes(), order='bgr'), files),
        'Pillow decodes 256 px': decode_all(with_pillow, small),
        'we decode 256 px': decode_all(lambda path: decode(path.read_bytes(), order='bgr'), small),
    }
    return runs, {'500 × 375': size / 1000, '256 px': small_size / 1000}


def run_rounds(runs: dict[str, Callable[[], object]], pairs: int) -> dict[str, list[tuple[float, float]]]:
    """(processor seconds, seconds) of each contestant in each round; one round before them warms up."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for index in range(-1, pairs):
        for name in list(runs)[:: 1 if index % 2 == 0 else -1]:
            wall, processor = time.perf_counter(), time.process_time()
            runs[name]()
            took = time.process_time() - processor, time.perf_counter() - wall
            if index >= 0:
                found[name].append(took)
    return found


def report(found: dict[str, list[tuple[float, float]]], images: int) -> dict[str, Any]:
    """Rates and ratios as plain values; a ratio is the reference's processor time over the contestant's."""
    reference = [processor for processor, _ in found[REFERENCE]]
    rows = []
    for name, times in found.items():
        processor = [own for own, _ in times]
        rows.append(
            dict(
                name=name,
                images_per_s=images / median(processor),
                images_per_s_wall=images / median([wall for _, wall in times]),
                ratio=pairwise(reference, processor),
                processor_seconds=processor,
            )
        )
    return dict(images=images, rows=rows, load=os.getloadavg())


def show(result: dict[str, Any], console: Console) -> None:
    """Print the report as a table."""
    sizes = ', '.join(f'{name}: {kilobytes:.0f} kB a file' for name, kilobytes in result['kilobytes'].items())
    pairs = len(result['rows'][0]['processor_seconds'])
    load = ' '.join(f'{value:.1f}' for value in result['load'])
    table = Table(title=f'{result["images"]} images, {pairs} pairs; {sizes}; load {load}; torch {torch.__version__}')
    for title in ('', 'images/s', 'by the clock', 'over the first (quartiles)', 'goal'):
        table.add_column(title, justify='right' if title else 'left', no_wrap=True)
    for row in result['rows']:
        low, middle, high = (row['ratio'][key] for key in ('low', 'median', 'high'))
        goal = f'{TARGETS[row["name"]]} ×' if row['name'] in TARGETS else ''
        ratio = f'{middle:.2f} × ({low:.2f} – {high:.2f})'
        table.add_row(row['name'], f'{row["images_per_s"]:.0f}', f'{row["images_per_s_wall"]:.0f}', ratio, goal)
    console.print(table)


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, default=256, help='number of images (default: 256)')
    parser.add_argument('--pairs', type=int, default=7, help='measured epochs of each pipeline (default: 7)')
    parser.add_argument('--json', type=Path, metavar='FILE', help='also write the report to this file')
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    args = parse_args(arguments)
    MMLogger.get_current_instance().setLevel('WARNING')
    init_default_scope('mmpretrain')
    torch.set_num_threads(1)
    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with TemporaryDirectory() as root:
        runs, kilobytes = contestants(Path(root), args.images)
        result = {**report(run_rounds(runs, args.pairs), args.images), 'kilobytes': kilobytes}
    show(result, Console(width=None if sys.stdout.isatty() else 110))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
    main()
