"""Measure time and memory of loading a ViT from another format, compared with torch.load of the same file.

python benchmarks/load_time.py [--arch h] [--format {mae,timm,hf_vit,beit,mkd}] [--rounds 5]

Writes a file of random weights to a temporary folder. Each load runs in its own process, which first builds the network and
then times `load_backbone` alone (reading, detecting, converting, checking, copying). Memory is the growth of the process's
peak resident set, including the network and the mapped pages of the file; the resident set before (interpreter and
libraries) is printed beside it. The file is in the system's cache in every round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from mkd_plugin.checkpoint.formats import FORMATS

MIB = 2**20
PATCH = {'h': 14}


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return options of a network that the format can hold."""
    options: dict[str, Any] = dict(arch=args.arch, patch_size=PATCH.get(args.arch, 16), position='learned')
    if args.format == 'beit':
        options |= dict(position='none', relative_position='shared', layer_scale=0.1)
    return options


def write_file(args: argparse.Namespace, path: Path) -> None:
    """Write a file of random weights."""
    from mkd_plugin.models.vit import VisionTransformer

    tensors = VisionTransformer(**options_of(args)).state_dict()
    if args.format == 'beit':
        for name, tensor in tensors.items():
            if name.endswith('qkv.bias'):
                tensor.zero_()
    weights, left = FORMATS[args.format].to_theirs(tensors)
    assert not left
    torch.save({'model': {name: tensor.clone() for name, tensor in weights.items()}}, path)


def peak() -> int:
    """Return the peak resident set of this process in bytes, excluding that of its parent."""
    line = next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('VmHWM'))
    return int(line.split()[1]) * 1024


def run_once(args: argparse.Namespace) -> dict[str, float]:
    """Load in this process."""
    from mkd_plugin.checkpoint import load_backbone
    from mkd_plugin.models.vit import VisionTransformer

    torch.load(args.file, weights_only=True, mmap=True)  # so that the code below has already run once
    if args.once == 'ours':
        with torch.device('meta'):  # drawing random weights would take longer than loading
            network = VisionTransformer(**options_of(args))
        network = network.to_empty(device='cpu')
    before, start = peak(), time.perf_counter()
    if args.once == 'ours':
        load_backbone(network, args.file)
    else:
        torch.load(args.file, weights_only=True, map_location='cpu')
    return {'seconds': time.perf_counter() - start, 'before': before, 'peak': peak()}


def measure(args: argparse.Namespace, file: Path, which: str) -> dict[str, float]:
    """Load in a new process."""
    command = [sys.executable, __file__, '--once', which, '--file', file, '--arch', args.arch, '--format', args.format]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', default='h')
    parser.add_argument('--format', default='timm', choices=['mae', 'timm', 'hf_vit', 'beit', 'mkd'])
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--once', choices=['torch', 'ours'], help=argparse.SUPPRESS)
    parser.add_argument('--file', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.once:
        print(json.dumps(run_once(args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, 'file.pth')
        write_file(args, file)
        size = file.stat().st_size
        rounds = [(measure(args, file, 'torch'), measure(args, file, 'ours')) for _ in range(args.rounds)]
    ratios = [ours['seconds'] / theirs['seconds'] for theirs, ours in rounds]
    print(f'ViT-{args.arch.upper()} in the format {args.format}: {size / MIB:.0f} MiB, {args.rounds} rounds, medians')
    print('| | s | MiB before | MiB more at most | more / file |')
    print('|---|---|---|---|---|')
    for name, index in (('torch.load', 0), ('load_backbone', 1)):
        seconds, before, top = (
            statistics.median(pair[index][key] for pair in rounds) for key in ('seconds', 'before', 'peak')
        )
        more = top - before
        print(f'| {name} | {seconds:.2f} | {before / MIB:.0f} | {more / MIB:.0f} | {more / size:.2f} |')
    print(f'load_backbone over torch.load: {statistics.median(ratios):.2f} ({min(ratios):.2f} – {max(ratios):.2f})')


if __name__ == '__main__':
    main()
