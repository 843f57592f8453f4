"""Random weights in another library's network, converted, loaded into ours: how far are the outputs apart?

python benchmarks/check_equality.py [--sizes ti s b l h] [--json FILE]

One network at a time, on the CPU, in float32: the library's class gets normal random weights, its state dict goes to a file,
`load_backbone` reads it, and both networks see the same random image: once for images of 224 px, once for a size that is no
square (192 × 256, or 196 × 252 where patches are of 14 px). The figure is the largest difference over the largest magnitude
of the tokens; one that is not finite or above the bound is marked, and the exit code is 1. Then ours is exported, and must be
what it came from bit by bit. tools/docs/equality.py writes docs/equality.md from docs/equality/report.json.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mkd_plugin.checkpoint import load_backbone
from mkd_plugin.interop.export import TOLERANCE, ForeignClass, build_filled, export_weights, find_class, largest_error
from mkd_plugin.models.vit import VisionTransformer

CLIP = dict(pre_norm=True, norm_eps=1e-5, activation='quick_gelu')
BEIT = dict(position='none', layer_scale=0.1)
HEAD = '| network | class there | at 224 px | at the other size | export bit-identical |\n|---|---|---|---|---|'
SIZES = ('ti', 's', 'b', 'l', 'h')
LIBRARIES = ('torch', 'timm', 'transformers', 'mmpretrain', 'open_clip')


@dataclass(frozen=True)
class Case:
    """A network.

    Attributes:
        name: Of the model.
        size: Key of the command line's sizes.
        options: Of our network, without the image's size.
        targets: Libraries that have it.
        other: The second size, height and width.
    """

    name: str
    size: str
    options: dict[str, Any]
    targets: tuple[str, ...]
    other: tuple[int, int] = (192, 256)


def cases() -> list[Case]:
    """All networks, small ones first."""
    found = []
    for size in SIZES:
        patch, other = (14, (196, 252)) if size == 'h' else (16, (192, 256))
        plain = dict(arch=size, patch_size=patch)
        found.append(Case(f'ViT-{size}/{patch}', size, plain, ('timm', 'hf', 'mmpretrain', 'mae'), other))
    for size in ('ti', 's', 'b'):
        distilled = dict(arch=size, distillation_token=True)
        found.append(Case(f'DeiT-{size} distilled', size, distilled, ('timm', 'hf', 'mmpretrain')))
    for size in ('s', 'b', 'l'):
        registers = dict(arch=size, patch_size=14, layer_scale=0.1, num_registers=4)
        found.append(Case(f'DINOv2-{size}/14, 4 registers', size, registers, ('timm', 'hf'), (196, 252)))
    for size in ('b', 'l'):
        shared, each = ({**BEIT, 'arch': size, 'relative_position': kind} for kind in ('shared', 'per_block'))
        found.append(Case(f'BEiT-{size}, BEiT v2-{size}, shared bias', size, shared, ('timm', 'hf', 'mmpretrain')))
        found.append(Case(f'BEiT-{size}, BEiT v2-{size}, bias per block', size, each, ('timm', 'hf', 'mmpretrain')))
    targets = ('timm', 'hf', 'openclip')
    found.append(Case('CLIP-b/16', 'b', dict(arch='b', projection=512, **CLIP), targets))
    found.append(Case('CLIP-l/14', 'l', dict(arch='l', patch_size=14, projection=768, **CLIP), targets, (196, 252)))
    return found


def randomise(network: nn.Module) -> None:
    """Normal weights, scaled so that activations neither die nor explode; norms and scales around one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            std = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
            parameter.normal_(0, min(std, 0.1), generator=generator)
            if parameter.ndim == 1 and 'bias' not in name:
                parameter.add_(1.0)
            if name == 'head.bias':  # of CLIP's projection
                parameter.zero_()


def compare(foreign: ForeignClass, options: dict[str, Any], folder: Path) -> tuple[float, bool, list[str]]:
    """Largest error, whether the export is the very weights that were read, and the tensors that it leaves out."""
    theirs = foreign.library.build(foreign.name, options)
    randomise(theirs)
    weights = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    torch.save(weights, folder / 'file.pth')
    with torch.random.fork_rng():
        ours = VisionTransformer(**options)
    load_backbone(ours, folder / 'file.pth')
    theirs.eval()
    error = largest_error(foreign.library.run, theirs, ours)
    _, exported, _ = export_weights(ours.state_dict(), ours.options, foreign.target)
    # the mask token of DINOv2's classes is no part of the network: an export has zeros there
    unused = [name for name in exported if name.endswith('.mask_token')]
    same = all(torch.equal(exported[name], weights[name]) for name in exported if name not in unused)
    build_filled(foreign, options, exported)
    return error, same, unused


def rows_of(case: Case) -> list[dict[str, Any]]:
    """The case's lines of the table; an error is None if it is not finite, and absent if the class does not take the size."""
    rows = []
    sizes: dict[str, Any] = {'224 × 224': 224, ' × '.join(map(str, case.other)): list(case.other)}
    for target in case.targets:
        row: dict[str, Any] = dict(network=case.name, sizes=list(sizes), errors={}, identical=True, unused=[])
        for name, size in sizes.items():
            with torch.device('meta'):
                options = VisionTransformer(**{'position': 'learned', 'img_size': size, **case.options}).options
            try:
                foreign = find_class(target, options)
            except ValueError:
                continue
            with tempfile.TemporaryDirectory() as folder:
                error, same, row['unused'] = compare(foreign, options, Path(folder))
            row |= {'class': foreign.title, 'identical': row['identical'] and same}
            row['errors'][name] = error if math.isfinite(error) else None
        rows.append(row)
    return rows


def line_of(row: Mapping[str, Any], bound: float = TOLERANCE) -> str:
    """A row as Markdown."""
    cells = []
    for size in row['sizes']:
        if size not in row['errors']:
            cells.append('the class takes squares only')
            continue
        error = row['errors'][size]
        shown = 'not finite' if error is None else f'{error:.1e}'
        good = error is not None and error <= bound
        cells.append(shown if good else f'**{shown}** not equal: {bound:.0e} is allowed')
    back = 'no' if not row['identical'] else 'yes, but for its unused mask token' if row['unused'] else 'yes'
    return f'| {row["network"]} | {row["class"]} | {" | ".join(cells)} | {back} |'


def main() -> int:
    """Print the table, and write the figures if wanted; return 1 if a network differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--sizes', nargs='+', choices=SIZES, default=SIZES)
    parser.add_argument('--json', type=Path, metavar='FILE', help='a file for the figures')
    args = parser.parse_args()
    rows, left_out = [], []
    print(HEAD)
    start = time.perf_counter()
    for case in cases():
        if case.size not in args.sizes:
            left_out.append(case.name)
            continue
        for row in rows_of(case):
            print(line_of(row), flush=True)
            rows.append(row)
    seconds = time.perf_counter() - start
    print(f'equal means at most {TOLERANCE:.0e}; {seconds:.0f} s')
    if args.json:
        found = dict(
            command=f'python benchmarks/check_equality.py --sizes {" ".join(args.sizes)}', seconds=round(seconds),
            tolerance=TOLERANCE, threads=torch.get_num_threads(), python=platform.python_version(),
            versions={name: import_module(name).__version__ for name in LIBRARIES}, rows=rows, not_run=left_out,
        )  # fmt: skip
        args.json.write_text(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + '\n')
    differs = [row for row in rows if any(e is None or e > TOLERANCE for e in row['errors'].values())]
    return int(bool(differs) or not all(row['identical'] for row in rows))


if __name__ == '__main__':
    raise SystemExit(main())
