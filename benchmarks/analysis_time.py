"""Speed and memory of the analysis: singular spectra against numpy's SVD, and attention a layer at a time.

    python benchmarks/analysis_time.py [--images 64] [--arch b] [--pairs 3] [--json FILE]

Spectra: the token-level log spectrum of every image's tokens, ours (eigenvalues of the smaller Gram matrix, batched)
against `numpy.linalg.svd` of the D × D covariance image by image, as the public code does it; singular values only, so
without the vectors. Both in turn on the same features, the order reversed every other time; both in float64. Memory:
tensors alive at once (without what kernels allocate inside) while one fused attention layer is measured, and while a
whole network runs with all layers measured, against keeping every layer's attention.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from workload import LiveMemory

from mkd_plugin.analysis import AttentionStatistics, PerLayer, run_watched, token_log_spectrum
from mkd_plugin.models.vit import Arch, VisionTransformer, resolve_arch

PATCH = 16


def features(images: int, length: int, width: int) -> Tensor:
    """Tokens like a network's: float32, with a mean and a spectrum that falls over three orders of magnitude."""
    generator = torch.Generator().manual_seed(0)
    scale_D = torch.logspace(0, -3, width)
    mixing_DD = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    tokens_BLD = torch.randn(images, length, width, generator=generator) * scale_D
    return tokens_BLD @ mixing_DD + torch.randn(width, generator=generator)


def by_numpy(tokens_BLD: np.ndarray) -> np.ndarray:
    """ln of the singular values of each image's covariance, as far as it has them."""
    rank = min(tokens_BLD.shape[1] - 1, tokens_BLD.shape[2])
    return np.stack([np.log(np.linalg.svd(np.cov(tokens_LD.T), compute_uv=False)[:rank]) for tokens_LD in tokens_BLD])


def seconds(run: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare_spectra(images: int, length: int, width: int, pairs: int) -> dict[str, Any]:
    """Times of both, pair by pair, and the greatest difference of the results."""
    tokens_BLD = features(images, length, width)
    array_BLD = tokens_BLD.numpy()
    contestants = [lambda: token_log_spectrum(tokens_BLD), lambda: by_numpy(array_BLD)]
    wanted_BR, found_BR = by_numpy(array_BLD[:2]), token_log_spectrum(tokens_BLD[:2]).numpy()  # warms both up
    times = []
    for index in range(pairs):
        turn = 1 if index % 2 == 0 else -1
        times.append([seconds(run) for run in contestants[::turn]][::turn])
        print(f'pair {index + 1}:  ours {times[-1][0]:.2f} s  numpy {times[-1][1]:.2f} s')
    ours, numpys = (list(column) for column in zip(*times, strict=True))
    ratios = [other / mine for mine, other in times]
    return dict(
        ours_seconds=ours,
        numpy_seconds=numpys,
        speed_up=dict(least=min(ratios), median=median(ratios), most=max(ratios)),
        greatest_difference_of_logs=float(np.abs(wanted_BR - found_BR).max()),
    )


class OneLayer(nn.Module):
    """A fused attention layer alone: (B, H, N, K) as queries, keys and values."""

    def forward(self, x_BHNK: Tensor) -> Tensor:
        """Attend."""
        return F.scaled_dot_product_attention(x_BHNK, x_BHNK, x_BHNK)


def peak_bytes(known: Sequence[Tensor], run: Callable[[], object]) -> int:
    """Bytes alive at once, at most, beside what was there before."""
    with LiveMemory(known) as memory:
        run()
    return int(memory.peak)


def measure_memory(images: int, arch: Arch, side: int) -> dict[str, Any]:
    """Peaks in MiB, and the time that measuring one layer takes."""
    length = side * side + 1
    options = dict(grid=(side, side), patch_size=PATCH, flavour='cl-vs-mim')
    x_BHNK = torch.randn(images, arch.num_heads, length, arch.width // arch.num_heads)
    layer = OneLayer()

    def measure() -> None:
        run_watched(layer, x_BHNK, on_attention=PerLayer(lambda name: AttentionStatistics(**options, name=name)))

    measuring_seconds = seconds(measure)
    model = VisionTransformer(arch=arch, img_size=side * PATCH, patch_size=PATCH)
    pixels = torch.randn(images, 3, side * PATCH, side * PATCH)
    known = [pixels, *model.parameters(), *model.buffers()]
    statistics = PerLayer(lambda name: AttentionStatistics(**options, name=name))
    kept: list[Tensor] = []
    bytes_of = dict(
        attention_of_one_layer=images * arch.num_heads * length**2 * 4,
        measuring_one_layer=peak_bytes([x_BHNK], measure),
        network_alone=peak_bytes(known, lambda: run_watched(model, pixels)),
        network_all_layers_measured=peak_bytes(known, lambda: run_watched(model, pixels, on_attention=statistics)),
        network_all_layers_kept=peak_bytes(
            known, lambda: run_watched(model, pixels, on_attention=lambda name, attention: kept.append(attention))
        ),
    )
    return dict(
        mib={key: value / 2**20 for key, value in bytes_of.items()}, measuring_one_layer_seconds=measuring_seconds
    )


def show(result: dict[str, Any], console: Console) -> None:
    """Print both parts."""
    spectra, memory = result['spectra'], result['memory']
    table = Table('token spectra', 'seconds (median)', title=result['machine'])
    table.add_row('ours', f'{median(spectra["ours_seconds"]):.3f}')
    table.add_row('numpy.linalg.svd, image by image', f'{median(spectra["numpy_seconds"]):.3f}')
    console.print(table)
    least, middle, most = spectra['speed_up'].values()
    console.print(
        f'{middle:.1f} × faster ({least:.1f} – {most:.1f} pair by pair); the logs differ by at most '
        f'{spectra["greatest_difference_of_logs"]:.1e}'
    )
    table = Table('tensors alive at once', 'MiB')
    for key, value in memory['mib'].items():
        table.add_row(key.replace('_', ' '), f'{value:.1f}')
    console.print(table)
    console.print(f'distance, entropy and NMI of one layer: {memory["measuring_one_layer_seconds"]:.2f} s')


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, default=64)
    parser.add_argument('--arch', default='b', help="size of the ViT: 'ti', 's', 'b', 'l', 'h'")
    parser.add_argument('--side', type=int, default=14, help='patches per side')
    parser.add_argument('--pairs', type=int, default=3, help='measured pairs of the spectra')
    parser.add_argument('--json', type=Path, metavar='FILE', help='also write everything there')
    args = parser.parse_args(arguments)
    arch = resolve_arch(args.arch)
    result = dict(
        machine=f'CPU, {torch.get_num_threads()} threads, torch {torch.__version__}, numpy {np.__version__}, '
        f'{args.images} images of {args.side} × {args.side} × {arch.width}',
        spectra=compare_spectra(args.images, args.side**2, arch.width, args.pairs),
        memory=measure_memory(args.images, arch, args.side),
    )
    show(result, Console())
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
    main()
