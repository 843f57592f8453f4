"""Compare the speed of our k-NN with scikit-learn's brute force on the same features.

    python benchmarks/knn_time.py [--images 50000] [--width 768] [--queries 10000] [--pairs 3] [--json FILE]

Both find the 200 nearest neighbours by cosine in float32. Ours then computes weighted votes for k = 10, 20, 100 and 200,
scikit-learn only for 200. The order of the two is reversed in every other pair of measurements.
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
import sklearn
import torch
from rich.console import Console
from rich.table import Table
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from mkd_plugin.evaluation.knn import KS, TEMPERATURE, knn_predict

CLASSES = 1000


def clusters(images: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw features of overlapping classes, (N, width) float32, and class ids."""
    centres_CD = torch.randn(CLASSES, width, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels_N = torch.randint(CLASSES, (images,), generator=generator)
    return centres_CD[labels_N] + 5 * torch.randn(images, width, generator=generator), labels_N


def by_scikit_learn(train_ND: Tensor, labels_N: Tensor, queries_MD: Tensor) -> Any:
    """Predict ids with 200 neighbours."""
    weights = lambda distance: np.exp((1 - distance) / TEMPERATURE)  # noqa: E731
    knn = KNeighborsClassifier(max(KS), algorithm='brute', metric='cosine', weights=weights)
    return knn.fit(train_ND.numpy(), labels_N.numpy()).predict(queries_MD.numpy())


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that a function takes, and its result."""
    start = time.perf_counter()
    found = run()
    return time.perf_counter() - start, found


def compare(images: int, width: int, queries: int, pairs: int) -> dict[str, Any]:
    """Return the times of both, pair by pair, and the fraction of queries on which they agree."""
    train_ND, labels_N = clusters(images, width, 1)
    queries_MD, _ = clusters(queries, width, 2)
    contestants: list[Callable[[], Any]] = [
        lambda: knn_predict(train_ND, labels_N, queries_MD)[max(KS)].numpy(),
        lambda: by_scikit_learn(train_ND, labels_N, queries_MD),
    ]
    times, agreement = [], 0.0
    for index in range(pairs):
        turn = 1 if index % 2 == 0 else -1
        (ours, found), (other, wanted) = [timed(run) for run in contestants[::turn]][::turn]
        times.append((ours, other))
        agreement = float((found == wanted).mean())
        print(f'pair {index + 1}:  ours {ours:.2f} s  scikit-learn {other:.2f} s', flush=True)
    ratios = [other / ours for ours, other in times]
    return dict(
        ours_seconds=[ours for ours, _ in times],
        scikit_learn_seconds=[other for _, other in times],
        speed_up=dict(least=min(ratios), median=median(ratios), most=max(ratios)),
        agreement=agreement,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, default=50_000, help='training images (default: %(default)s)')
    parser.add_argument('--width', type=int, default=768, help='width of the features (default: %(default)s)')
    parser.add_argument('--queries', type=int, default=10_000, help='images to classify (default: %(default)s)')
    parser.add_argument('--pairs', type=int, default=3, help='repetitions (default: %(default)s)')
    parser.add_argument('--json', type=Path, metavar='FILE', help='also write all numbers to this file')
    args = parser.parse_args(arguments)
    result = dict(
        machine=f'CPU, {torch.get_num_threads()} threads, torch {torch.__version__}, scikit-learn {sklearn.__version__}, '
        f'{args.images} × {args.width} against {args.queries}',
        **compare(args.images, args.width, args.queries, args.pairs),
    )
    table = Table('k-NN', 'seconds (median)', title=result['machine'])
    table.add_row('ours, k = 10, 20, 100, 200', f'{median(result["ours_seconds"]):.2f}')
    table.add_row('scikit-learn, brute force, k = 200', f'{median(result["scikit_learn_seconds"]):.2f}')
    console = Console()
    console.print(table)
    least, middle, most = result['speed_up'].values()
    console.print(
        f'{middle:.2f} × as fast ({least:.2f} – {most:.2f} pair by pair); '
        f'same class for {result["agreement"]:.2%} of the queries'
    )
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
    main()
