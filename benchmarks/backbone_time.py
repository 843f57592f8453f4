"""Forward and backward passes of the dense backbone against mmseg's own, in turn: time ratios and peak memory.

    python benchmarks/backbone_time.py --size 512x512 --size 800x1216
    python benchmarks/step_time.py backbones --size 512x512 --json FILE       (the same)

Two pairs of ViTs of the same size: with absolute positions against mmseg's VisionTransformer, with a relative position bias in
every block (and layer scale) against mmseg's BEiT. Both are built for the size they are given, so that nothing is resized, and
give the maps of four blocks; the loss is the mean of their squares. Passes of both alternate.

Peak memory is by how much the highest resident set of a process of its own (``VmHWM``; on a GPU what torch allocates)
grows from before the network is built to after two passes: weights, gradients, buffers, activations and scratch.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from timing import Round, Timing, pairwise, run_rounds, timed
from torch import Tensor, nn

from mkd_plugin.dense import DenseViT
from mkd_plugin.models.vit import Arch, resolve_arch

PAIRS = {'absolute': ('ours, absolute', 'mmseg VisionTransformer'), 'relative': ('ours, relative', 'mmseg BEiT')}


def build(name: str, arch: Arch, size: tuple[int, int]) -> nn.Module:
    """One of the networks, for images of ``size``."""
    taps = [arch.depth * part // 4 - 1 for part in range(1, 5)] if arch.depth >= 4 else [arch.depth - 1]
    if name == 'ours, absolute':
        return DenseViT(arch=arch, img_size=size, out_indices=taps)
    if name == 'ours, relative':
        options: dict[str, Any] = dict(position='none', relative_position='per_block', layer_scale=0.1)
        return DenseViT(arch=arch, img_size=size, out_indices=taps, **options)
    from mmseg.models import backbones  # not where only the other's memory is measured

    options = dict(
        embed_dims=arch.width, num_layers=arch.depth, num_heads=arch.num_heads, mlp_ratio=int(arch.mlp_ratio)
    )
    options |= dict(img_size=size, out_indices=taps)
    if name == 'mmseg BEiT':
        return backbones.BEiT(**options)
    return backbones.VisionTransformer(**options, patch_bias=True)


class Contestant:
    """A network with a batch of images, ready to be run."""

    def __init__(self, name: str, args: argparse.Namespace, size: tuple[int, int]) -> None:
        self.device = torch.device(args.device)
        self.dtype = getattr(torch, args.dtype)
        self.network = build(name, arch_of(args), size).to(self.device)
        self.images = torch.randn(args.batch_size, 3, *size, device=self.device)

    def run(self) -> None:
        """Forward and backward; the gradients are kept."""
        self.network.zero_grad()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype != torch.float32):
            maps: Sequence[Tensor] = self.network(self.images)
        torch.stack([values.float().square().mean() for values in maps]).sum().backward()

    def time_step(self) -> Timing:
        """Run once."""
        return timed(self.run, self.device)


def arch_of(args: argparse.Namespace) -> Arch:
    """The named size, with fewer blocks if that was asked for."""
    arch = resolve_arch(args.arch)
    return Arch(arch.width, args.depth or arch.depth, arch.num_heads, arch.mlp_ratio)


def peak_bytes(device: str) -> int:
    """The most memory this process has had."""
    if device == 'cuda':
        return torch.cuda.max_memory_allocated()
    status = Path('/proc/self/status').read_text()  # ru_maxrss would begin with the parent's
    return int(re.search(r'VmHWM:\s+(\d+) kB', status)[1]) * 1024


def print_growth(name: str, args: argparse.Namespace) -> None:
    """Measure one network's memory in this process, and print it."""
    build(name, Arch(64, 1, 1), (32, 32))  # the imports' memory is not the network's
    before = peak_bytes(args.device)
    contestant = Contestant(name, args, args.size[0])
    for _ in range(2):
        contestant.run()
    print(json.dumps({'bytes': peak_bytes(args.device) - before}))


def memory_of(name: str, args: argparse.Namespace, size: tuple[int, int]) -> int:
    """The same in a process of its own, bytes."""
    options = dict(size='x'.join(map(str, size)), arch=args.arch, depth=arch_of(args).depth, device=args.device)
    options |= {'dtype': args.dtype, 'batch-size': args.batch_size, 'memory-of': name}
    command = [sys.executable, __file__, *(f'--{key}={value}' for key, value in options.items())]
    shown = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return int(json.loads(shown.splitlines()[-1])['bytes'])


def compare(kind: str, args: argparse.Namespace, size: tuple[int, int]) -> dict[str, Any]:
    """Both networks of a pair at one size."""
    contestants = [Contestant(name, args, size) for name in PAIRS[kind]]
    for contestant in contestants:
        contestant.run()
    rounds = run_rounds(contestants, args.pairs, torch.device(args.device), getattr(torch, args.dtype))
    kept = sorted(rounds, key=lambda past: past.quiet)[-args.pairs :]
    del contestants
    seconds, processor = times_of(kept)
    return {
        'kind': kind,
        'size': size,
        'names': PAIRS[kind],
        'seconds': [median(column) for column in seconds],
        'processor_seconds': [median(column) for column in processor],
        'time_ratio': pairwise(*seconds),
        'processor_time_ratio': pairwise(*processor),
        'peak_bytes': [memory_of(name, args, size) for name in PAIRS[kind]],
        'rounds': len(rounds),
    }


def times_of(rounds: Sequence[Round]) -> tuple[list[list[float]], list[list[float]]]:
    """Seconds of each network by round, by the clock and of the processor."""
    columns = list(zip(*(past.timings for past in rounds), strict=True))
    seconds = [[timing.seconds for timing in column] for column in columns]
    return seconds, [[timing.seconds * timing.cores for timing in column] for column in columns]


def show(results: Sequence[dict[str, Any]], title: str) -> None:
    """Print everything as a table; ratios are ours over mmseg's."""
    table = Table('', 'size', 's', 'time ratio (quartiles)', 'processor time ratio', 'GiB', 'ratio', title=title)
    for found in results:
        ratios = [found[key].values() for key in ('time_ratio', 'processor_time_ratio')]
        seconds, gib = found['seconds'], [value / 2**30 for value in found['peak_bytes']]
        table.add_row(
            ' / '.join(found['names']),
            'x'.join(map(str, found['size'])),
            f'{seconds[0]:.2f} / {seconds[1]:.2f}',
            *(f'{middle:.3f} ({low:.3f} – {high:.3f})' for low, middle, high in ratios),
            f'{gib[0]:.2f} / {gib[1]:.2f}',
            f'{gib[0] / gib[1]:.3f}',
        )
    Console().print(table)


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--size', action='append', type=size_of, metavar='HxW', help='pixels; may be repeated; default 512x512')
    add('--kinds', nargs='+', choices=list(PAIRS), default=list(PAIRS))
    add('--arch', default='b')
    add('--depth', type=int, help="fewer blocks than the architecture's: a shorter run of the same ratio")
    add('--batch-size', type=int, default=1)
    add('--pairs', type=int, default=7)
    add('--device', choices=['cpu', 'cuda'], default='cuda' if torch.cuda.is_available() else 'cpu')
    add('--dtype', choices=['float32', 'bfloat16'], default='float32', help='bfloat16 is autocast')
    add('--json', type=Path, metavar='FILE', help='also write everything there')
    add('--memory-of', help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    args.size = args.size or [(512, 512)]
    return args


def size_of(text: str) -> tuple[int, int]:
    """'HxW' as numbers. Raises ValueError if it is something else."""
    height, width = text.split('x')
    return int(height), int(width)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    args = parse_args(arguments)
    if args.memory_of:
        print_growth(args.memory_of, args)
        return
    results = [compare(kind, args, size) for size in args.size for kind in args.kinds]
    arch = arch_of(args)
    where = torch.cuda.get_device_name() if args.device == 'cuda' else f'CPU, {torch.get_num_threads()} threads'
    what = f'width {arch.width}, {arch.depth} blocks, batch {args.batch_size}'
    title = f'{where}, torch {torch.__version__}, {args.dtype}, {what}'
    if args.json:
        args.json.write_text(json.dumps({'machine': title, 'results': results}, indent=1) + '\n')
    show(results, title)


if __name__ == '__main__':
    main()
