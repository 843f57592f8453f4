"""Write docs/scaling.md from counted models and sourced constants: ``python tools/docs/scaling.py``."""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from scaling_counts import count, measure
from scaling_runs import (
    CONSTANTS,
    COUNTED,
    DAY,
    GPUS,
    HOUR,
    MODELS_OF,
    PUBLISHED,
    Published,
    Run,
    constant,
    goal,
    model_of,
    today,
    work_of,
)  # fmt: skip

PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'scaling.md'


def published_row(entry: Published) -> list[str]:
    """Published GPU-hours against ours at both shares of that GPU's peak."""
    work = work_of(entry)
    cells = [
        f'{work / constant(name):,.0f} ({work / constant(name) / entry.gpu_hours - 1:+.0%})'
        for name in ('goal', 'today')
    ]
    return [entry.what, f'{entry.gpu_hours:,.0f}', f'{work / entry.gpu_hours:.0%}', *cells, entry.source]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of the page."""
    return '\n'.join(f'| {" | ".join(row)} |' for row in [header, ['---'] * len(header), *rows])


def shown(value: float) -> str:
    """A number as people read it."""
    return f'{value:.4g}' if value < 1 or value > 1e5 else f'{value:,.0f}'


def bound(run: Run) -> str:
    """What a step waits for."""
    by = 'launches' if run.launching > run.compute else 'products'
    return f'{by} and network' if run.exposed > 0 else by


def run_row(name: str, gpus: int) -> list[str]:
    """A row of the main table."""
    runs = goal(name, gpus), today(name, gpus)

    def both(form: Callable[[Run], str]) -> str:
        return ' / '.join(dict.fromkeys(form(run) for run in runs))

    return [
        name, f'{gpus:,}', f'{runs[0].batch:,}', f'{runs[0].images:g}', both(lambda run: f'{1e3 * run.step:.1f}'), both(bound),
        both(lambda run: f'{run.hours:,.1f}' if run.hours > 10 else f'{run.hours:.2f}'),
        both(lambda run: f'{run.hours * gpus:,.0f}'),
    ]  # fmt: skip


def machine_row(name: str, gpus: int) -> list[str]:
    """A row of the table of communication, checkpoints, failures and data."""
    run = goal(name, gpus)
    total = run.speed * gpus
    return [
        name, f'{gpus:,}', f'{run.gradients / 1e9:.2f} GB, {1e3 * run.communication:.1f} ms, {1e3 * run.exposed:.1f} ms',
        f'{run.checkpoint / 1e9:.1f} GB, {run.stall:.2%}', f'{run.failures:.2g}, {run.lost:.2%}', f'{total:,.0f}',
        f'{total * constant("shard image") / 1e9:.2f} / {total * constant("file image") / 1e9:.2f}',
        f'{run.speed / constant("shard decoding"):.1f} / {run.speed / constant("file decoding"):.1f}',
    ]  # fmt: skip


def draw(path: Path) -> None:
    """Draw hours over GPUs, with what perfect scaling from one node would give."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout='constrained')
    for name in MODELS_OF:
        (line,) = axes.loglog(GPUS, [goal(name, gpus).hours for gpus in GPUS], marker='o', label=f'ViT-{name}')
        axes.loglog(
            GPUS, [today(name, gpus).hours for gpus in GPUS], '--', marker='.', color=line.get_color(), linewidth=1
        )
        first = goal(name, GPUS[0]).hours
        axes.loglog(
            GPUS, [first * GPUS[0] / gpus for gpus in GPUS], ':', color=line.get_color(), linewidth=1, alpha=0.6
        )
    axes.set_xticks(GPUS, [f'{gpus:,}' for gpus in GPUS])
    axes.set_yticks([0.1, 1, 10, 100], ['6 min', '1 h', '10 h', '100 h'])
    axes.minorticks_off()
    axes.set(xlabel='H100 GPUs', ylabel='1600 epochs of ImageNet-1K', title='dBOT, estimated')
    text = 'solid: 50 % of the peak, CUDA graphs\ndashed: 25 %, eager\ndotted: perfect scaling of the solid lines'
    axes.text(0.02, 0.04, text, transform=axes.transAxes, fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


HEAD = """<!-- Made by tools/docs/scaling.py: change that, not this page. -->
# On many GPUs: an estimate

What 8, 64, 512 and 4096 H100 would do with dBOT on ImageNet-1K, 1600 epochs in two stages. **Nothing here has been run on a
GPU**: the page computes what counted models and sourced constants imply, and compares the same computation with published
times. Use it to choose a number of GPUs, and to see what stops scaling first.

![Hours of a run over the number of GPUs, for four sizes of the student](scaling/hours.png)

## What stops first

"""

HOW = """
## The run

Two figures in a cell are for the goal, 50 % of the measured peak of an H100 with compiled steps in CUDA graphs (which this
package does not make), and for eager steps at 25 %, an estimate from reading the
code.

- A step takes the FLOPs of its matrix products over that share of the peak; an eager one no less than the host needs to launch
  its kernels. `CompileHook` lies between.
- Gradients are summed in float32 by a ring, 2 (n − 1) / n of their bytes per GPU, beside the backward pass (two thirds of the
  step). Only what does not fit there costs time.
- Up to 64 GPUs the batch is the recipe's. Beyond, it is the largest published one, with the same epochs;
  [what that asks of rate and length](train.md#other-batches-than-the-recipes).

"""

MACHINE = """
## Communication, checkpoints, failures, data

All at 50 % of the peak. Checkpoints are written every 15 minutes as the shares of
[sharded training](train.md#sharded-training); training waits while a GPU's share is copied. An interruption loses half of that
time and ten minutes for the restart, on all GPUs. Cores are those that decode for one GPU, if the
[GPU crops and resizes](data.md#the-pipeline).

"""

CHECK = """
## Against published times

The same FLOPs at the same shares of *that GPU's* peak, without launches, communication or failures; in parentheses, the
deviation from the published time. The third column is the share of the peak that the published time implies.

"""

LAST = """

`launch` is the host's time for an operation of an eager step, measured on a CPU: a step of one image of 64 px of dBOT with a
student of width 16 in float32, over its operations; the fastest of 40. A faster host takes less, and launching on a GPU comes
on top. `copying` is how fast a checkpoint's share was copied to main memory. `python tools/docs/scaling.py --measure` measures
both (one thread of an AMD EPYC, Zen 4, shared with other jobs). On a GPU neither has been measured.

Counted from the models, with a whole teacher, forward and backward without the optimiser:

"""


def notes() -> str:
    """Say in words what the tables show, with their figures."""
    most = GPUS[-1]
    slow = {gpus: today('B/16', gpus) for gpus in GPUS}
    first = next(gpus for gpus in GPUS if slow[gpus].launching > slow[gpus].compute)
    fast, giant = goal('B/16', most), goal('g/14', most)
    speed, interval = goal('B/16', 8).speed, DAY / HOUR / (most * constant('interruptions'))
    shards, files = (8 * speed / constant(f'{kind} decoding') for kind in ('shard', 'file'))
    read = GPUS[-2] * speed * constant('shard image')
    gains = [goal(name, GPUS[-2]).hours / goal(name, most).hours for name in MODELS_OF]
    stall = max(goal(name, gpus).stall for name in MODELS_OF for gpus in GPUS)
    lines = (
        f'**Launches, in eager steps.** A step of ViT-B/16 launches at least {slow[8].model.launches:,} kernels: '
        f'{1e3 * slow[8].launching:.0f} ms of the host. From {first} GPUs on, its products take less '
        f'({1e3 * slow[first].compute:.1f} ms at 25 %), and more GPUs gain nothing without CUDA graphs.',
        f'**The batch.** Even of {fast.batch:,} images, {most} GPUs get {fast.images:g} each.',
        f'**The network, with so few images.** The sum of the gradients of ViT-B takes {1e3 * fast.communication:.1f} ms, '
        f'its step {1e3 * fast.compute:.1f} ms; of ViT-g {1e3 * giant.communication:.0f} and {1e3 * giant.compute:.0f} ms. '
        f'From {GPUS[-2]} to {most} GPUs, runs become {min(gains):.1f} to {max(gains):.1f} times as fast, not eight times.',
        f'**Reading and decoding.** At {speed:,.0f} images/s, eight GPUs that train ViT-B need {shards:.0f} cores from shards, '
        f'and {files:.0f} from files. {GPUS[-2]} GPUs read {read / 1e9:.0f} GB/s of shards.',
        f'**Not failures.** {most} GPUs are interrupted every {interval:.0f} hours. With checkpoints every 15 minutes that '
        f'costs {fast.lost:.1%} of the time.',
        f'**Not checkpoints.** They hold training for at most {stall:.2%} of the time.',
    )
    return bullets(lines)


def bullets(lines: Sequence[str]) -> str:
    """Lines of a list."""
    return ''.join(textwrap.fill(f'- {line}', 128, subsequent_indent='  ') + '\n' for line in lines)


def caveats() -> str:
    """Say what the comparison with published times means."""
    shares = [work_of(entry) / entry.gpu_hours for entry in PUBLISHED]
    return '\n' + bullets((
        f"The published codes reached {min(shares):.0%} to {max(shares):.0%} of their GPU's peak: those of 2022 less than 25 "
        '%, DailyMAE, which was made for speed, more. The goal of 50 % lies above all of them.',
        'DailyMAE trains at growing resolutions, so its FLOPs are fewer than counted here, and its share is overstated.',
        'L and H begin with a teacher without blocks (`start_depth=0`): their first stage is cheaper than counted.',
        'These shares are of data sheets. Of a measured peak, which is lower, they would be higher.',
    ))  # fmt: skip


def page() -> str:
    """The whole page."""
    rows = [(name, gpus) for name in MODELS_OF for gpus in GPUS]
    runs = table(
        ['student', 'GPUs', 'batch', 'images a GPU', 'step, ms', 'bound by', 'hours', 'GPU-hours'],
        [run_row(*row) for row in rows],
    )
    machines = table(
        [
            'student', 'GPUs', 'gradients: bytes, sum, exposed', 'checkpoint: bytes, stall', 'failures: in the run, time lost',
            'images/s', 'GB/s from shards / files', 'cores a GPU, shards / files',
        ],
        [machine_row(*row) for row in rows],
    )  # fmt: skip
    published = table(
        ['what', 'GPU-hours', 'share implied', 'at 50 %', 'at 25 %', 'source'], [published_row(e) for e in PUBLISHED]
    )
    models = table(
        ['student', 'GFLOP an image', 'kernels a step', 'trained parameters', "teachers' weights"],
        [
            [
                name,
                f'{m.flops / 1e9:,.1f}',
                f'{m.launches:,}',
                f'{m.trained / 1e6:,.1f} M',
                f'{m.teachers / 1e6:,.1f} M',
            ]
            for name, m in ((name, model_of(name)) for name in MODELS_OF)
        ],
    )
    constants = table(
        ['constant', 'value', 'unit', 'kind', 'source'],
        [[name, shown(c.value), c.unit, c.kind, c.source] for name, c in CONSTANTS.items()],
    )
    text = HEAD + notes() + HOW + runs + '\n' + MACHINE + machines + '\n' + CHECK + published + '\n' + caveats()
    text += '\n## Constants\n\n' + constants + LAST + models + '\n'
    return re.sub(r'(\d)%', r'\1 %', text)


def main() -> None:
    """Write the page, and the picture if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=PAGE, help='page to write (default: %(default)s)')
    parser.add_argument('--picture', action='store_true', help='draw the picture, too (default: off)')
    parser.add_argument(
        '--measure', action='store_true', help='measure what a CPU can measure, and stop (default: off)'
    )
    parser.add_argument('--count', action='store_true', help='count the models anew, a minute (default: off)')
    args = parser.parse_args()
    if args.count:
        wanted = {*MODELS_OF.values(), *((entry.config, entry.arch) for entry in PUBLISHED)}
        counts = {f'{config} {arch}': asdict(count(config, arch)) for config, arch in sorted(wanted)}
        COUNTED.write_text(json.dumps(counts, indent=1) + '\n')
    if args.measure:
        measure()
        return
    args.out.write_text(page(), encoding='utf-8')
    if args.picture:
        draw(args.out.with_suffix('') / 'hours.png')
    print(f'wrote {args.out}')


if __name__ == '__main__':
    main()
