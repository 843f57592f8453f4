"""Random weights in another library's network, converted, loaded into ours: how far are the outputs apart?

python benchmarks/check_equality.py [--sizes ti s b l h] [--write FILE]

One network at a time, on the CPU, in float32: the library's class gets normal random weights, its state dict goes to a file,
`load_backbone` reads it, and both networks see the same random image: once for images of 224 px, once for a size that is no
square (192 × 256, or 196 × 252 where patches are of 14 px). The figure is the largest difference over the largest magnitude
of the tokens; one that is not finite or above the bound is marked, and the exit code is 1. Then ours is exported, and must be
what it came from bit by bit.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mkd_plugin.checkpoint import load_backbone
from mkd_plugin.interop.export import TOLERANCE, ForeignClass, build_filled, export_weights, find_class, largest_error
from mkd_plugin.models.vit import VisionTransformer

CLIP = dict(pre_norm=True, norm_eps=1e-5, activation='quick_gelu')
BEIT = dict(position='none', layer_scale=0.1)
DIFFERS = f'not equal: {TOLERANCE:.0e} is allowed'


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
    for size in ('ti', 's', 'b', 'l', 'h'):
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


def compare(foreign: ForeignClass, options: dict[str, Any], folder: Path) -> tuple[float, bool]:
    """Largest error, and whether the export is the very weights that were read."""
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
    same = all(torch.equal(exported[name], weights[name]) for name in exported if not name.endswith('.mask_token'))
    build_filled(foreign, options, exported)
    return error, same


def rows_of(case: Case) -> list[str]:
    """The case's lines of the table."""
    rows = []
    sizes: tuple[Any, ...] = (224, list(case.other))
    for target in case.targets:
        cells, back = [], True
        for size in sizes:
            with torch.device('meta'):
                options = VisionTransformer(**{'position': 'learned', 'img_size': size, **case.options}).options
            try:
                foreign = find_class(target, options)
            except ValueError:
                cells.append('the class takes squares only')
                continue
            with tempfile.TemporaryDirectory() as folder:
                error, same = compare(foreign, options, Path(folder))
            cells.append(f'{error:.1e}' if error <= TOLERANCE else f'**{error:.1e}** {DIFFERS}')
            back = back and same
        rows.append(f'| {case.name} | {foreign.title} | {" | ".join(cells)} | {"yes" if back else "no"} |')
    return rows


def main() -> int:
    """Print the table, and write it if wanted; return 1 if a network differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--sizes', nargs='+', default=['ti', 's', 'b', 'l', 'h'])
    parser.add_argument('--write', help='a file for the table')
    args = parser.parse_args()
    head = '| network | class there | at 224 px | at the other size | export bit-identical |\n|---|---|---|---|---|'
    lines = [head]
    print(head)
    start = time.perf_counter()
    for case in cases():
        if case.size in args.sizes:
            for row in rows_of(case):
                print(row, flush=True)
                lines.append(row)
    print(f'equal means at most {TOLERANCE:.0e}; {time.perf_counter() - start:.0f} s')
    if args.write:
        Path(args.write).write_text('\n'.join(lines) + '\n')
    return int(any(DIFFERS in line or line.endswith('| no |') for line in lines))


if __name__ == '__main__':
    raise SystemExit(main())
