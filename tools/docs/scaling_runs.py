"""What a run on many GPUs would take: constants with their sources, the computation, and published times."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from scaling_counts import BASE, Counted

COUNTED = Path(__file__).resolve().parents[2] / 'docs' / 'scaling' / 'counted.json'  # what `scaling.py --count` counted
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


WORKER = "[benchmarks](benchmarks.md#input-pipeline): the worker's part, from "
CONSTANTS = {
    'H100 peak': Constant(798e12, 'FLOP/s', 'H100, 8192² in bf16, as the goal was set; `gpu_benchmark.py` measures it'),
    'A100 peak': Constant(312e12, 'FLOP/s', 'NVIDIA A100 data sheet: dense bf16 and fp16'),
    'V100 peak': Constant(125e12, 'FLOP/s', 'NVIDIA V100 data sheet: fp16'),
    'goal': Constant(0.50, 'of the peak', 'the goal for a whole step', 'choice'),
    'today': Constant(0.25, 'of the peak', 'estimated by reading the code; no GPU has measured it', 'choice'),
    'launch': Constant(15e-6, 's', 'see the text below', 'measured'),
    'NVLink': Constant(460e9, 'B/s', 'nccl-tests, all-reduce of 8 H100 SXM: 460–480 GB/s (docs.alayanew.com, 2026)'),
    'network': Constant(400e9, 'B/s', 'a node of 8 H100 with 400 Gb/s for each GPU (Llama 3, arXiv:2407.21783, Sec. 3.3.1)'),
    'recipe batch': Constant(4096, 'images', 'dBOT, Table A1'),
    'largest batch': Constant(16384, 'images', 'CAPI, default_pretrain_config.yaml: 512 × 32 GPUs, AdamW, rate 1e-3'),
    'interruptions': Constant(419 / 54 / 16384, 'a GPU and day', 'Llama 3, Sec. 3.3.4: 419 in 54 days on 16,384 H100'),
    'between checkpoints': Constant(900, 's', 'default of `default_hooks.checkpoint.minutes`', 'choice'),
    'restart': Constant(600, 's', 'queue, imports, first batches: ten minutes', 'choice'),
    'copying': Constant(1.4e9, 'B/s', 'see the text below', 'measured'),
    'shard image': Constant(31e3, 'B', '[benchmarks](benchmarks.md#input-pipeline): shards of 256 px', 'measured'),
    'file image': Constant(110e3, 'B', 'mean of ImageNet-1K', 'cited'),
    'shard decoding': Constant(1616, 'images/s of a core', WORKER + 'shards', 'measured'),
    'file decoding': Constant(666, 'images/s of a core', WORKER + 'files', 'measured'),
}  # fmt: skip


def constant(name: str) -> float:
    """Value of a constant."""
    return CONSTANTS[name].value


# Name → config and size of the student. Of ViT-g, for which dBOT has no recipe, the size is DINOv2's.
MODELS_OF = {
    'B/16': (BASE, 'b'),
    'L/16': ('dbot/dbot_vit-large-p16_8xb512-2x800e_in1k', 'l'),
    'H/14': ('dbot/dbot_vit-huge-p14_8xb512-2x800e_in1k', 'h'),
    'g/14': ('dbot/dbot_vit-huge-p14_8xb512-2x800e_in1k', 'g'),
}
MAE = 'mae/mae_vit-base-p16_8xb512-1600e_in1k'


@cache
def counted(config: str, arch: str) -> Counted:
    """Read what was counted of a config whose student has another size."""
    return Counted(**json.loads(COUNTED.read_text())[f'{config} {arch}'])


def model_of(name: str) -> Counted:
    """One of ``MODELS_OF``."""
    return counted(*MODELS_OF[name])


@dataclass(frozen=True)
class Run:
    """A run of 1600 epochs on a number of GPUs, data-parallel."""

    model: Counted
    gpus: int
    share: float  #: Of the measured peak
    eager: bool  #: Whether the host launches every kernel, without compilation and CUDA graphs

    @property
    def batch(self) -> int:
        """Images of an update: the recipe's, or on many GPUs the largest published number."""
        return int(constant('recipe batch' if self.gpus <= 64 else 'largest batch'))

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
        """Seconds in which the host launches the kernels of an eager step, which cannot be shorter."""
        return self.model.launches * constant('launch') * self.eager

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


def goal(name: str, gpus: int) -> Run:
    """A run of a compiled step at the goal."""
    return Run(model_of(name), gpus, constant('goal'), eager=False)


def today(name: str, gpus: int) -> Run:
    """A run of an eager step as estimated."""
    return Run(model_of(name), gpus, constant('today'), eager=True)


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


def work_of(entry: Published) -> float:
    """GPU-hours of a published run if its GPU worked at its peak."""
    return counted(entry.config, entry.arch).flops * IMAGENET * entry.epochs / constant(entry.gpu) / HOUR
