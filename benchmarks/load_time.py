"""Measure time and memory of loading a ViT from another format, compared with torch.load of the same file.

python benchmarks/load_time.py [--arch h] [--format {mae,timm,hf_vit,beit,mkd}] [--rounds 5] [--cold] [--training]

Writes a file of random weights to a temporary folder. Each load runs in its own process, which first builds the network and
then times `load_backbone` alone (reading, detecting, converting, checking, copying), with the comparison of the file's
checksums and without. Memory is the growth of the process's peak resident set, including the network and the mapped pages of
the file; the resident set before (interpreter and libraries) is printed beside it. The file is in the system's cache in every
round, or with `--cold` in none. Processor time counts all threads. With `--training` the file also has AdamW's state, and
what is timed is what `--resume` does with it: choose it, read it, and load the weights and the state.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from mkd_plugin.checkpoint.formats import FORMATS

MIB = 2**20
WAYS = {
    'torch': 'torch.load',
    'unchecked': 'here, without checksums',
    'ours': 'here',
}
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

    network = VisionTransformer(**options_of(args))
    if args.training:
        torch.save({'state_dict': network.state_dict(), 'optimizer': stepped(network).state_dict()}, path)
        return
    tensors = network.state_dict()
    if args.format == 'beit':
        for name, tensor in tensors.items():
            if name.endswith('qkv.bias'):
                tensor.zero_()
    weights, left = FORMATS[args.format].to_theirs(tensors)
    assert not left
    torch.save({'model': {name: tensor.clone() for name, tensor in weights.items()}}, path)


def stepped(network: torch.nn.Module) -> torch.optim.Optimizer:
    """Return an AdamW that has both moments of every parameter."""
    optimizer = torch.optim.AdamW(network.parameters())
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def resume(path: Path, network: torch.nn.Module, *, checked: bool) -> int:
    """Load a training checkpoint as `--resume` does; return the number of its weights."""
    from mkd_plugin.checkpoint import checksum, read_checkpoint

    if checked:
        checksum.check_records(path)  # when the newest whole checkpoint is chosen; not repeated below
    checkpoint = read_checkpoint(path)
    network.load_state_dict(checkpoint['state_dict'])
    torch.optim.AdamW(network.parameters()).load_state_dict(checkpoint['optimizer'])
    return len(checkpoint['state_dict'])


def peak() -> int:
    """Return the peak resident set of this process in bytes, excluding that of its parent."""
    line = next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('VmHWM'))
    return int(line.split()[1]) * 1024


def run_once(args: argparse.Namespace) -> dict[str, float]:
    """Load in this process; ``tensors`` is the number of the network's tensors that were loaded."""
    from mkd_plugin.checkpoint import load_backbone, read
    from mkd_plugin.models.vit import VisionTransformer

    torch.load(args.file, weights_only=True, mmap=True)  # so that the code below has already run once
    if args.once == 'unchecked':
        read.checked_records = lambda source: nullcontext()
    if args.once != 'torch':
        with torch.device('meta'):  # drawing random weights would take longer than loading
            network = VisionTransformer(**options_of(args))
        network = network.to_empty(device='cpu')
    if args.cold:
        forget(args.file)
    tensors = 0
    before, start, processor = peak(), time.perf_counter(), time.process_time()
    if args.once == 'torch':
        torch.load(args.file, weights_only=True, map_location='cpu')
    elif args.training:
        tensors = resume(Path(args.file), network, checked=args.once == 'ours')
    else:
        tensors = len(load_backbone(network, args.file).loaded)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    return {'seconds': seconds, 'processor': processor, 'before': before, 'peak': peak(), 'tensors': tensors}


def forget(path: str) -> None:
    """Drop a file from the system's cache."""
    with Path(path).open('rb') as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(args: argparse.Namespace, file: Path, which: str) -> dict[str, float]:
    """Load in a new process."""
    command = [sys.executable, __file__, '--once', which, '--file', file, '--arch', args.arch, '--format', args.format]
    command += [f'--{name}' for name in ('cold', 'training') if getattr(args, name)]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', default='h')
    parser.add_argument('--format', default='timm', choices=['mae', 'timm', 'hf_vit', 'beit', 'mkd'])
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--cold', action='store_true', help='read the file from disk in every round')
    parser.add_argument('--training', action='store_true', help="resume from a file with the optimiser's state")
    parser.add_argument('--once', choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument('--file', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.once:
        print(json.dumps(run_once(args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, 'file.pth')
        write_file(args, file)
        size = file.stat().st_size
        rounds = [{way: measure(args, file, way) for way in WAYS} for _ in range(args.rounds)]
    place = 'read from disk' if args.cold else 'in the cache'
    kind = 'a training checkpoint' if args.training else f'in the format {args.format}'
    print(f'ViT-{args.arch.upper()}, {kind}: {size / MIB:.0f} MiB, {place}, {args.rounds} rounds, medians')
    print('| | s | s of processor | MiB before | MiB more at most | more / file |')
    print('|---|---|---|---|---|---|')
    for way, name in WAYS.items():
        seconds, processor, before, top = (
            statistics.median(each[way][key] for each in rounds) for key in ('seconds', 'processor', 'before', 'peak')
        )
        more = top - before
        print(
            f'| {name} | {seconds:.2f} | {processor:.2f} | {before / MIB:.0f} | {more / MIB:.0f} | {more / size:.2f} |'
        )
    for base in ('torch', 'unchecked'):
        ratios = [each['ours']['seconds'] / each[base]['seconds'] for each in rounds]
        print(
            f'{WAYS["ours"]} over {WAYS[base]}: {statistics.median(ratios):.2f} ({min(ratios):.2f} – {max(ratios):.2f})'
        )


if __name__ == '__main__':
    main()
