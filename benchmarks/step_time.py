"""Whole training steps of one config, or of two in turn: images/s, TFLOP/s, share of the machine's peak, memory, ratio.

    python benchmarks/step_time.py dbot/dbot_digits --against mae/mae_digits
    python benchmarks/step_time.py CONFIG --against mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py
    python benchmarks/step_time.py CONFIG --flops-only
    python benchmarks/step_time.py backbones --size 512x512       (the dense backbone against mmseg's: backbone_time.py)

A config is a file, the name of a shipped one, METHOD:ROW for an ablation, or PACKAGE::NAME for a host's. A step is what the
runner does with a batch: preprocessing, forward, backward, optimiser; images are random and already on the device. Steps of
both configs alternate, so that a machine that slows down slows both. FLOPs are those of matrix products (2 for a
multiply-add), forward and backward, teachers included, whatever kernel runs them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from rich.console import Console
from rich.table import Table
from timing import Timing, pairwise, run_rounds, timed
from torch import Tensor
from torch.utils._pytree import tree_leaves
from workload import LiveMemory, batch_of, build_model, count_gflops, image_shape, read_config

WARM_UP = 2


@dataclass
class Figures:
    """What was measured of one config."""

    config: str
    gflop_per_image: float
    seconds: list[float] = field(default_factory=list)
    processor_seconds: list[float] = field(default_factory=list)  # summed over threads, waiting ones included
    peak_bytes: int = 0
    resident_bytes: int = 0
    student_gflop: float = 0.0  # of gflop_per_image, without the teachers


class Contestant:
    """A model with its optimiser and one batch, ready to step.

    Args:
        name: The config's name.
        batch_size: Images in a step.
        device: Where it runs.
        dtype: torch.float32, or a lower precision for autocast.
    """

    def __init__(self, name: str, *, batch_size: int, device: torch.device, dtype: torch.dtype) -> None:
        cfg = read_config(name)
        gflops = count_gflops(cfg)
        self.figures = Figures(name, gflops.total, student_gflop=gflops.student)
        self.device = device
        self.model = build_model(cfg).to(device)
        parts = ('optimizer', 'paramwise_cfg', 'clip_grad', 'constructor')  # no accumulation: every step is a whole one
        options = {key: cfg.optim_wrapper[key] for key in parts if key in cfg.optim_wrapper}
        if dtype != torch.float32:
            options.update(type='AmpOptimWrapper', dtype='bfloat16', loss_scale=dict(enabled=False))
        self.optimizer = build_optim_wrapper(self.model, options)
        images = torch.randint(0, 256, (batch_size, *image_shape(self.model)), dtype=torch.uint8, device=device)
        self.batch = dict(zip(('inputs', 'data_samples'), batch_of(cfg, images), strict=True))
        for _ in range(WARM_UP):
            self._step()
        self.figures.resident_bytes, self.figures.peak_bytes = self._measure_memory()

    def _step(self) -> None:
        self.model.train_step(dict(self.batch), self.optimizer)

    def time_step(self) -> Timing:
        """Take one step."""
        return timed(self._step, self.device)

    def _measure_memory(self) -> tuple[int, int]:
        """Bytes between steps (weights, teachers, optimiser), and the most within one."""
        states = self.optimizer.optimizer.state.values()
        kept = [*self.model.parameters(), *self.model.buffers(), *tree_leaves([dict(state) for state in states])]
        kept = [value for value in kept if isinstance(value, Tensor)]
        storages = {value.untyped_storage()._cdata: value.untyped_storage().nbytes() for value in kept}
        resident = sum(storages.values())
        if self.device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()  # whatever else is there: the other contestant
            self._step()
            return resident, resident + torch.cuda.max_memory_allocated() - before
        with LiveMemory([*kept, *tree_leaves(self.batch['inputs'])]) as memory:
            self._step()
        return resident, resident + memory.peak


def report(figures: Sequence[Figures], batch_size: int, peak: float | None) -> dict[str, Any]:
    """Everything as plain values; ratios are the first config over the second, of times pair by pair.

    Args:
        peak: FLOP/s of the matrix product; None if nothing was timed.
    """
    rows = []
    for found in figures:
        row: dict[str, Any] = asdict(found)
        if peak is not None:
            step = median(found.seconds)
            rate = found.gflop_per_image * 1e9 * batch_size / step
            row |= dict(median_seconds=step, images_per_s=batch_size / step, tflop_per_s=rate / 1e12)
            row |= dict(percent_of_peak=100 * rate / peak, peak_gib=found.peak_bytes / 2**30)
            row |= dict(resident_gib=found.resident_bytes / 2**30)
        rows.append(row)
    result: dict[str, Any] = dict(configs=rows)
    if len(figures) == 2:
        first, second = figures
        result['flop_ratio'] = first.gflop_per_image / second.gflop_per_image
        result['student_flop_ratio'] = first.student_gflop / second.student_gflop
        if peak is not None:
            result['time_ratio'] = pairwise(first.seconds, second.seconds)
            result['processor_time_ratio'] = pairwise(first.processor_seconds, second.processor_seconds)
    return result


LINES = {
    'gflop_per_image': ('GFLOP an image', '{:.2f}'),
    'student_gflop': ('of these, without teachers', '{:.2f}'),
    'median_seconds': ('s a step', '{:.3f}'),
    'images_per_s': ('images/s', '{:.2f}'),
    'tflop_per_s': ('TFLOP/s', '{:.4f}'),
    'percent_of_peak': ('% of the product', '{:.1f}'),
    'peak_gib': ('GiB at most', '{:.2f}'),
    'resident_gib': ('GiB between steps', '{:.2f}'),
}


def show(result: dict[str, Any], console: Console) -> None:
    """Print the report as a table."""
    table = Table('', title=result['machine'])
    rows = result['configs']
    for row in rows:
        table.add_column(row['config'], justify='right', overflow='fold')
    for key, (title, form) in LINES.items():
        if key in rows[0]:
            table.add_row(title, *(form.format(row[key]) for row in rows))
    console.print(table)
    if 'flop_ratio' in result:
        ratio, of_student = result['flop_ratio'], result['student_flop_ratio']
        console.print(f'first over second: FLOPs {ratio:.4f}, without teachers {of_student:.4f}')
    if 'time_ratio' in result:
        for name, key in (('time', 'time_ratio'), ('processor time', 'processor_time_ratio')):
            low, middle, high = result[key].values()
            beside = middle / result['flop_ratio']
            console.print(f'{name} {middle:.3f} (quartiles {low:.3f} – {high:.3f}), {beside:.3f} × the ratio of FLOPs')


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('--against', metavar='CONFIG', help='a second config, stepped in turn with the first')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--dtype', choices=['float32', 'bfloat16'], help='bfloat16 is autocast, the default on a GPU')
    parser.add_argument('--batch-size', type=int, default=16)
    parser.add_argument('--pairs', type=int, default=7, help='measured steps of each config')
    parser.add_argument('--flops-only', action='store_true', help='count, run nothing: seconds')
    parser.add_argument('--json', type=Path, metavar='FILE', help='also write everything there')
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ['backbones']:
        import backbone_time  # which uses this module

        backbone_time.main(given[1:])
        return
    args = parse_args(given)
    MMLogger.get_current_instance().setLevel('WARNING')  # not a line for every parameter group
    names = [args.config, *([args.against] if args.against else [])]
    if args.flops_only:
        counted = [(name, count_gflops(read_config(name))) for name in names]
        figures = [Figures(name, gflops.total, student_gflop=gflops.student) for name, gflops in counted]
        result = {'machine': f'counted, torch {torch.__version__}', **report(figures, args.batch_size, None)}
    else:
        device = torch.device(args.device)
        dtype = getattr(torch, args.dtype or ('bfloat16' if args.device == 'cuda' else 'float32'))
        contestants = [Contestant(name, batch_size=args.batch_size, device=device, dtype=dtype) for name in names]
        rounds = run_rounds(contestants, args.pairs, device, dtype)
        kept = sorted(rounds, key=lambda past: past.quiet)[-args.pairs :]
        peak = max(past.product_rate for past in rounds)
        where = torch.cuda.get_device_name() if args.device == 'cuda' else f'CPU, {torch.get_num_threads()} threads'
        setting = f'{str(dtype)[6:]}, batch {args.batch_size}, {args.pairs} of {len(rounds)} pairs'
        figures = [contestant.figures for contestant in contestants]
        for index, found in enumerate(figures):
            found.seconds = [past.timings[index].seconds for past in kept]
            found.processor_seconds = [
                timing.seconds * timing.cores for timing in (past.timings[index] for past in kept)
            ]
        result = {
            'machine': f'{where}, torch {torch.__version__}, {setting}, product {peak / 1e12:.3f} TFLOP/s',
            'product_tflop_per_s': peak / 1e12,
        }
        result['quiet'] = [past.quiet for past in kept]
        result |= report(figures, args.batch_size, peak)
    show(result, Console())
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
    main()
