"""How long tools/analyze.py takes for a network of random weights and 64 photographs: each measurement, and together.

    python benchmarks/report_time.py [--arch b] [--side 224] [--images 64] [--only NAME …] [--json FILE]

A measurement is a whole call of ``analyze``: it loads the file (330 MiB for a ViT-B), reads the images, measures, and draws
its part of the page. By default everything but the Hessian and the loss landscape. Seconds are the clock's and, on a machine
that others use as well, the process's own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from photographs import write_photographs
from rich.console import Console
from rich.table import Table

from mkd_plugin.checkpoint.releases import IMAGENET_PIXELS
from mkd_plugin.checkpoint.write import write_weights
from mkd_plugin.models.vit import VisionTransformer
from mkd_plugin.reporting.analysis import MEASUREMENTS, Settings, analyze
from mkd_plugin.reporting.analysis.settings import CURVATURE


def write_network(path: Path, arch: str, side: int) -> None:
    """A file of random weights."""
    torch.manual_seed(0)
    network = VisionTransformer(arch=arch, img_size=side)
    about = dict(backbone=network.options, pixel_mean=list(IMAGENET_PIXELS[0]), pixel_std=list(IMAGENET_PIXELS[1]))
    write_weights(path, {f'backbone.{name}': tensor for name, tensor in network.state_dict().items()}, about)


def measure(folder: Path, name: str, images: int) -> dict[str, Any]:
    """Seconds of one measurement. Raises RuntimeError if it could not be made."""
    clock, own = time.perf_counter(), time.process_time()
    settings = Settings(only=[name], images=images)
    report = analyze([str(folder / 'network.pth')], data=folder / 'images', out=folder / 'out', settings=settings)
    if report.failed:
        raise RuntimeError(f'{name}: {report.failed}')
    return dict(measurement=name, seconds=time.perf_counter() - clock, processor_seconds=time.process_time() - own)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', default='b', help="size of the ViT: 'ti', 's', 'b', 'l', 'h'")
    parser.add_argument('--side', type=int, default=224, help='of the images, pixels')
    parser.add_argument('--images', type=int, default=64)
    parser.add_argument('--only', nargs='+', default=[name for name in MEASUREMENTS if name not in CURVATURE])
    parser.add_argument('--json', type=Path, metavar='FILE', help='also write everything there')
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_photographs(folder / 'images', args.images)
        write_network(folder / 'network.pth', args.arch, args.side)
        rows = [measure(folder, name, args.images) for name in args.only]
    machine = (
        f'CPU, {torch.get_num_threads()} threads, torch {torch.__version__}, ViT-{args.arch}, {args.images} images'
    )
    total = {key: sum(row[key] for row in rows) for key in ('seconds', 'processor_seconds')}
    table = Table('measurement', 'seconds', 'processor', title=machine)
    for row in [*rows, dict(measurement='together', **total)]:
        table.add_row(row['measurement'], f'{row["seconds"]:.1f}', f'{row["processor_seconds"]:.1f}')
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps(dict(machine=machine, rows=rows, together=total), indent=1) + '\n')


if __name__ == '__main__':
    main()
