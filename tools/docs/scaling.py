"""Write docs/scaling.md from counted models and sourced constants: ``python tools/docs/scaling.py [--picture | --measure]``."""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mkd_plugin.engine.shard_files import begin_shards
from mkd_plugin.models.protocols import Progress
from mkd_plugin.preflight.checks import without_checkpoints
from mkd_plugin.preflight.memory import AnyValue
from mkd_plugin.utils.configs import get_config

PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'scaling.md'
GPUS = (8, 64, 512, 4096)
NODE = 8  # GPUs
HOUR, DAY = 3600, 86400
IMAGENET = 1_281_167  # images
EPOCHS, STAGES = 1600, 2


@dataclass(frozen=True)
class Constant:
    """A number of the machine, and where it comes from."""

    value: float
    unit: str
    source: str
    kind: str = 'cited'  #: 'measured' by us, 'cited', or 'choice'


CONSTANTS = {
    'H100 peak': Constant(798e12, 'FLOP/s', 'product of two 8192² matrices in bf16 on an H100, given with the goal of 50 %'),
    'A100 peak': Constant(312e12, 'FLOP/s', 'NVIDIA A100 data sheet: dense bf16 and fp16'),
    'V100 peak': Constant(125e12, 'FLOP/s', 'NVIDIA V100 data sheet: fp16'),
    'goal': Constant(0.50, 'of the peak', 'the goal for a whole step', 'choice'),
    'today': Constant(0.25, 'of the peak', 'a review of the code on paper; no GPU has measured it', 'choice'),
    'launch': Constant(5.0e-6, 's', 'see the text below', 'measured'),
    'NVLink': Constant(460e9, 'B/s', 'all-reduce of 8 H100 SXM, nccl-tests: 460–480 GB/s of bus bandwidth (docs.alayanew.com, 2026)'),
    'network': Constant(400e9, 'B/s', 'a node of 8 H100 with 400 Gb/s for each GPU (Llama 3, arXiv:2407.21783, Sec. 3.3.1)'),
    'recipe batch': Constant(4096, 'images', 'dBOT, Table A1'),
    'largest batch': Constant(16384, 'images', 'CAPI, default_pretrain_config.yaml: 512 × 32 GPUs, AdamW, rate 1e-3'),
    'interruptions': Constant(419 / 54 / 16384, 'a GPU and day', 'Llama 3, Sec. 3.3.4: 419 unexpected ones in 54 days on 16,384 H100'),
    'between checkpoints': Constant(900, 's', 'default of `default_hooks.checkpoint.minutes`', 'choice'),
    'restart': Constant(600, 's', 'queue, imports, first batches: ten minutes', 'choice'),
    'copying': Constant(1.0e9, 'B/s', 'see the text below', 'measured'),
    'shard image': Constant(31e3, 'B', '[benchmarks](benchmarks.md#input-pipeline): shards of 256 px', 'measured'),
    'file image': Constant(110e3, 'B', 'mean of ImageNet-1K', 'cited'),
    'shard decoding': Constant(1616, 'images/s of a core', "[benchmarks](benchmarks.md#input-pipeline): the worker's part from shards", 'measured'),
    'file decoding': Constant(666, 'images/s of a core', "[benchmarks](benchmarks.md#input-pipeline): the worker's part from files", 'measured'),
}  # fmt: skip


def constant(name: str) -> float:
    """Value of a constant."""
    return CONSTANTS[name].value


# Name → config, and what is changed in it. Teachers of the second stage, which are as large as the student.
MODELS_OF = {
    'B/16': ('dbot/dbot_vit-base-p16_8xb512-2x800e_in1k', {}),
    'L/16': ('dbot/dbot_vit-large-p16_8xb512-2x800e_in1k', {}),
    'H/14': ('dbot/dbot_vit-huge-p14_8xb512-2x800e_in1k', {}),
    'g/14': (
        'dbot/dbot_vit-huge-p14_8xb512-2x800e_in1k',
        {'model.backbone.arch': dict(width=1536, depth=40, num_heads=24)},
    ),
}
MAE = 'mae/mae_vit-base-p16_8xb512-1600e_in1k'


@dataclass(frozen=True)
class Counted:
    """A model's step, counted for one image."""

    flops: float  #: Of matrix products, forward and backward, teachers included
    launches: int  #: Operations that are no views, forward and backward
    trained: int  #: Parameters that are trained
    teachers: int  #: Weights of the teachers


class Launches(AnyValue):
    """Counts operations that compute."""

    count = 0
    free = {'view', 'expand', 'permute', 'transpose', 't', 'select', 'slice', 'split', 'detach', 'alias', 'unbind'} | {
        '_unsafe_view', 'unsqueeze', 'squeeze', 'as_strided', 'empty', 'empty_like', 'new_empty', 'empty_strided'
    }  # fmt: skip

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count it."""
        self.count += func.overloadpacket.__name__ not in self.free
        return super().__torch_dispatch__(func, types, args, kwargs)


@cache
def counted(config: str, arch: str | tuple[tuple[str, int], ...] | None = None) -> Counted:
    """Count a config's step on tensors without values; ``arch`` replaces the student's size."""
    init_default_scope('mmpretrain')
    if not MMLogger.check_instance_created('scaling'):
        MMLogger.get_instance('scaling', log_level='WARNING')
    cfg = get_config(config)
    if arch is not None:
        cfg.model.backbone.arch = arch if isinstance(arch, str) else dict(arch)
    if 'boot' in cfg.model.teachers:
        cfg.model.teachers.boot.pop('start_depth', None)  # from the second stage on, teachers are whole
    options = {'data_preprocessor': cfg.data_preprocessor, **without_checkpoints(cfg.model.to_dict())}
    with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True), AnyValue():
        warnings.simplefilter('ignore')
        model = MODELS.build(ConfigDict(options)).train()
        model.begin_training(Progress(0, 1))
        images = torch.zeros(2, 3, *model.backbone.image_hw)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flops:  # a fused kernel hides its own
            model.parse_losses(model.loss(images))[0].backward()
        with Launches() as launches:
            model.parse_losses(model.loss(images))[0].backward()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(b.numel() for teacher in model.teachers.values() for b in teacher.buffers())
    return Counted(flops.get_total_flops() / 2, launches.count, trained, frozen)


def model_of(name: str) -> Counted:
    """Count one of ``MODELS_OF``."""
    config, changes = MODELS_OF[name]
    arch = changes.get('model.backbone.arch')
    return counted(config, tuple(arch.items()) if arch else None)


@dataclass(frozen=True)
class Run:
    """A run of 1600 epochs on a number of GPUs, data-parallel."""

    model: Counted
    gpus: int
    share: float  #: Of the measured peak
    batch: int  #: Images of an update

    @property
    def images(self) -> float:
        """Images of a step of one GPU."""
        return self.batch / self.gpus

    @property
    def compute(self) -> float:
        """Seconds of the products of a step."""
        return self.images * self.model.flops / (self.share * constant('H100 peak'))

    @property
    def launching(self) -> float:
        """Seconds in which the host launches the kernels of a step: no eager step is shorter."""
        return self.model.launches * constant('launch')

    @property
    def gradients(self) -> float:
        """Bytes of the gradients, in float32."""
        return 4.0 * self.model.trained

    @property
    def communication(self) -> float:
        """Seconds of the sum of the gradients by a ring."""
        bandwidth = constant('NVLink') if self.gpus <= NODE else constant('network')
        return 2 * (self.gpus - 1) / self.gpus * self.gradients / bandwidth

    @property
    def exposed(self) -> float:
        """Seconds of it that do not fit beside the backward pass, two thirds of the step."""
        return max(0.0, self.communication - 2 / 3 * max(self.compute, self.launching))

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return max(self.compute, self.launching) + self.exposed

    @property
    def checkpoint(self) -> float:
        """Bytes of a checkpoint: weights, two moments, teachers."""
        return 4.0 * (3 * self.model.trained + self.model.teachers)

    @property
    def stall(self) -> float:
        """Share of the time for which checkpoints hold training, each GPU copying its share (ShardedStrategy)."""
        return self.checkpoint / self.gpus / constant('copying') / constant('between checkpoints')

    @property
    def lost(self) -> float:
        """Share of the time that failures cost: half of the time between checkpoints, and a restart."""
        each = constant('between checkpoints') / 2 + constant('restart')
        return self.gpus * constant('interruptions') / DAY * each

    @property
    def hours(self) -> float:
        """Hours of the run, stalls and failures included."""
        return EPOCHS * IMAGENET / self.batch * self.step / (1 - self.stall - self.lost) / HOUR

    @property
    def failures(self) -> float:
        """Interruptions to expect in the run."""
        return self.gpus * constant('interruptions') * self.hours * HOUR / DAY

    @property
    def speed(self) -> float:
        """Images per second of one GPU, while it trains."""
        return self.images / self.step


def batch_for(gpus: int) -> int:
    """The recipe's batch, or on many GPUs the largest published one."""
    return int(constant('recipe batch' if gpus <= 64 else 'largest batch'))


@dataclass(frozen=True)
class Published:
    """A published training time."""

    what: str
    config: str
    arch: str
    gpu: str  #: Constant of its peak
    gpu_hours: float
    epochs: int
    source: str


def of_dbot(what: str, config: str, arch: str, seconds: float) -> Published:
    """A time per epoch on 32 A100 of dBOT's comparison."""
    name = f'{what} ViT-{arch.upper()}, 1600 epochs'
    return Published(name, config, arch, 'A100 peak', 1600 * seconds * 32 / HOUR, 1600, 'dBOT, time per epoch, 32 A100')


PUBLISHED = (
    of_dbot('dBOT', MODELS_OF['B/16'][0], 'b', 109),
    of_dbot('dBOT', MODELS_OF['L/16'][0], 'l', 200),
    of_dbot('dBOT', MODELS_OF['H/14'][0], 'h', 416),
    of_dbot('MAE', MAE, 'b', 79),
    of_dbot('MAE', MAE, 'l', 125),
    Published('MAE ViT-L, 800 epochs', MAE, 'l', 'V100 peak', 42 * 64, 800, 'MAE, PRETRAIN.md: 42 h on 64 V100'),
    Published('DailyMAE ViT-B, 800 epochs', MAE, 'b', 'A100 peak', 18 * 8, 800, 'arXiv:2404.00509: 18 h on 8 A100'),
)


def published_row(entry: Published) -> list[str]:
    """Published GPU-hours against ours at both shares of that GPU's peak."""
    work = counted(entry.config, entry.arch).flops * IMAGENET * entry.epochs / constant(entry.gpu) / HOUR
    cells = [
        f'{work / constant(name):,.0f} ({work / constant(name) / entry.gpu_hours - 1:+.0%})'
        for name in ('goal', 'today')
    ]
    return [entry.what, f'{entry.gpu_hours:,.0f}', f'{work / entry.gpu_hours:.0%}', *cells, entry.source]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of the page."""
    return '\n'.join(f'| {" | ".join(row)} |' for row in [header, ['---'] * len(header), *rows])


def run_row(name: str, gpus: int) -> list[str]:
    """A row of the main table."""
    fast, slow = (Run(model_of(name), gpus, constant(share), batch_for(gpus)) for share in ('goal', 'today'))
    bound = 'products'
    if fast.launching > fast.compute:
        bound = '**launches**'
    if fast.exposed > 0:
        bound += ', **network**'
    return [
        name, f'{gpus:,}', f'{fast.batch:,}', f'{fast.images:g}', f'{1e3 * fast.step:.1f} / {1e3 * slow.step:.1f}', bound,
        f'{fast.hours:,.1f} / {slow.hours:,.1f}', f'{fast.hours * gpus:,.0f} / {slow.hours * gpus:,.0f}',
    ]  # fmt: skip


def machine_row(name: str, gpus: int) -> list[str]:
    """A row of the table of communication, checkpoints, failures and data."""
    run = Run(model_of(name), gpus, constant('goal'), batch_for(gpus))
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
        hours = [Run(model_of(name), gpus, constant('goal'), batch_for(gpus)).hours for gpus in GPUS]
        (line,) = axes.loglog(GPUS, hours, marker='o', label=f'ViT-{name}')
        axes.loglog(GPUS, [hours[0] * GPUS[0] / gpus for gpus in GPUS], ':', color=line.get_color(), linewidth=1)
    axes.set_xticks(GPUS, [f'{gpus:,}' for gpus in GPUS])
    axes.set_yticks([0.1, 1, 10, 100], ['6 min', '1 h', '10 h', '100 h'])
    axes.minorticks_off()
    axes.set(
        xlabel='H100 GPUs',
        ylabel='1600 epochs of ImageNet-1K',
        title='dBOT at half of the peak; dotted: perfect scaling',
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


HEAD = """<!-- Made by tools/docs/scaling.py: change that, not this page. -->
# On many GPUs: an estimate

What 8, 64, 512 and 4096 H100 would do with dBOT on ImageNet-1K, 1600 epochs in two stages. **Nothing here has been run on a GPU**:
the page computes what counted models and sourced constants imply, and compares the same computation with published times. Use it to
choose a number of GPUs, and to see what stops scaling first.

![Hours of a run over the number of GPUs, for four sizes of the student](scaling/hours.png)

## What stops first

"""

HOW = """
Two figures in a cell are for 50 % of the measured peak of an H100, the goal, and for 25 %, what a review on paper expects of the code
without compilation.

- A step takes the FLOPs of its matrix products over that share of the peak, but no less than the host needs to launch its kernels.
  `CompileHook` and CUDA graphs lower that floor; the estimate is for eager steps.
- Gradients are summed in float32 by a ring, 2 (n − 1) / n of their bytes per GPU, beside the backward pass (two thirds of the step).
  Only what does not fit there costs time.
- Up to 64 GPUs the batch is the recipe's. Beyond, it is the largest published one, with the same epochs;
  [what that asks of rate and length](train.md#other-batches-than-the-recipes). With fewer images a GPU has too little to do.

## The run

"""

MACHINE = """
## Communication, checkpoints, failures, data

All at 50 % of the peak. Checkpoints are written every 15 minutes as the shares of [sharded training](train.md#sharded-training); training
waits while a GPU's share is copied. An interruption loses half of that time and ten minutes for the restart, on all GPUs. Cores are those
that decode for one GPU, if the [GPU crops and resizes](data.md#the-pipeline).

"""

CHECK = """
## Against published times

The same FLOPs at the same shares of *that GPU's* peak, without launches, communication or failures. The third column is the share of the
peak that the published time implies.

"""

CAVEATS = """
- dBOT's own times imply 11 – 26 % of the peak, which is nearer to the 25 % than to the goal; larger students come closer. For ViT-B our 25 % is
  much too fast for the code of its time, which had no fused attention and float16 with a loss scaler.
- DailyMAE trains at growing resolutions, so its FLOPs are fewer than counted here, and its share of the peak is overstated.
- L and H begin with a teacher without blocks (`start_depth=0`): their first stage is cheaper than counted.
- V100 and A100 shares are of the data sheet; a product of two large matrices reaches 80 – 90 % of it, so the shares
  of a measured peak would be higher by that factor.

## Constants

"""


def notes() -> str:
    """Say in words what the tables show, with their figures."""
    base, huge = model_of('B/16'), model_of('g/14')
    run = {gpus: Run(base, gpus, constant('goal'), batch_for(gpus)) for gpus in GPUS}
    giant = Run(huge, 4096, constant('goal'), batch_for(4096))
    first = next(gpus for gpus in GPUS if run[gpus].launching > run[gpus].compute)
    mean = 1 / (4096 * constant('interruptions')) * 24
    return (
        f'- **Launches, for small students.** A step of ViT-B/16 launches {base.launches:,} kernels, at least '
        f'{1e3 * run[8].launching:.0f} ms of the host. From {first} GPUs on, its products take less '
        f'({1e3 * run[first].compute:.1f} ms): more GPUs then gain nothing without compilation or CUDA graphs.\n'
        f'- **The batch.** Even at {batch_for(4096):,} images, 4096 GPUs get {run[4096].images:g} each. Only more images an update or larger '
        'images would fill them.\n'
        f'- **The network, for large students on few images.** ViT-g/14 has {giant.gradients / 1e9:.1f} GB of gradients, '
        f'{1e3 * giant.communication:.0f} ms; at 4096 GPUs {1e3 * giant.exposed:.0f} ms of them stay exposed.\n'
        f'- **Not failures.** 4096 GPUs are interrupted every {mean:.0f} hours, longer than any of these runs takes there; checkpoints every '
        f'15 minutes keep the loss at {run[4096].lost:.1%}.\n'
        f'- **Not checkpoints**: at most {max(Run(huge, gpus, constant("goal"), batch_for(gpus)).stall for gpus in GPUS):.2%} '
        'of the time.\n'
        f'- **Decoding, per node.** At {run[8].speed:,.0f} images/s, eight GPUs need {8 * run[8].speed / constant("shard decoding"):.0f} '
        f'cores for ViT-B from shards, {8 * run[8].speed / constant("file decoding"):.0f} from files.\n'
    )


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
        [[name, f'{c.value:.4g}', c.unit, c.kind, c.source] for name, c in CONSTANTS.items()],
    )
    return (
        HEAD
        + notes()
        + HOW
        + runs
        + '\n'
        + MACHINE
        + machines
        + '\n'
        + CHECK
        + published
        + '\n'
        + CAVEATS
        + constants
        + LAST
        + models
        + '\n'
    )


LAST = """

`launch` is the host's time for an operation of an eager step, measured on a CPU (a step of dBOT's ViT-B with a width of 16 and one image, one thread
of an AMD EPYC of the Zen 4 generation, over its operations); launching to a GPU comes on top. `copying` is the rate at which a checkpoint's
share was copied to main memory there. On a GPU neither has been measured.

Counted from the models, with a whole teacher, forward and backward without the optimiser:

"""


def measure() -> None:
    """Measure `launch` and `copying` on this machine, on one thread."""
    torch.set_num_threads(1)
    init_default_scope('mmpretrain')
    cfg = get_config(MODELS_OF['B/16'][0])
    cfg.model.backbone.arch = dict(width=16, depth=12, num_heads=1)
    cfg.model.objectives.feature.head.update(width=16, num_heads=1)
    model = MODELS.build(ConfigDict({'data_preprocessor': cfg.data_preprocessor, **cfg.model})).train()
    model.begin_training(Progress(0, 1))
    images, times = torch.zeros(1, 3, *model.backbone.image_hw), []
    for _ in range(12):
        start = time.perf_counter()
        model.parse_losses(model.loss(images))[0].backward()
        times.append(time.perf_counter() - start)
    with Launches() as launches:
        model.parse_losses(model.loss(images))[0].backward()
    print(f'launch: {median(times) / launches.count * 1e6:.2f} µs, {launches.count} operations')
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    tensors, times = {str(number): torch.ones(2**24) for number in range(16)}, []
    for number in range(5):
        with TemporaryDirectory() as folder:
            start = time.perf_counter()
            finish = begin_shards(Path(folder, 'x'), tensors, {})
            times.append(time.perf_counter() - start)
            finish()
    print(f'copying: {2**30 / median(times) / 1e9:.2f} GB/s; {[round(t, 2) for t in times]} s for a GiB')


def main() -> None:
    """Write the page, and the picture if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=PAGE, help='page to write (default: %(default)s)')
    parser.add_argument('--picture', action='store_true', help='draw the picture, too (default: off)')
    parser.add_argument(
        '--measure', action='store_true', help='measure what a CPU can measure, and stop (default: off)'
    )
    args = parser.parse_args()
    if args.measure:
        measure()
        return
    args.out.write_text(page(), encoding='utf-8')
    if args.picture:
        draw(args.out.with_suffix('') / 'hours.png')
    print(f'wrote {args.out}')


if __name__ == '__main__':
    main()
