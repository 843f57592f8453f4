"""Choose the numbers of a pre-training from the number of images, the machine and the method.

Every number comes with the reason for it. docs/pretrain.md has the rules, and which of them are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mkd_plugin.preflight.plan import MIN_STAGE

STUDENTS = {'ti': (192, 12), 's': (384, 12), 'b': (768, 12), 'l': (1024, 24)}  # width, depth
STUDENT_LIMITS = {'ti': 20_000, 's': 200_000, 'b': 10_000_000}  # most images for which we choose this student

PATCHES = (16, 8, 4)
MIN_GRID = 6  # patches per side, so that masks can have a shape
CPU_SIZE = 112  # pixels, a quarter of the work of 224

MIN_BATCH, CPU_BATCH = 32, 32
MIN_EPOCH = 8  # steps of an epoch, so that the steps of one epoch differ
DEVICE_BATCH = {'ti': 1024, 's': 512, 'b': 256, 'l': 128}  # images at once on a GPU, before the trial steps

GOOD_STAGE = 2_000  # steps that we choose at least
CPU_SECONDS = 600
WARM_UP = 0.05  # of a stage, as 40 of 800 epochs of dBOT and MAE
HEAD_WIDTH = 32  # channels of a decoder's head, as in MAE (512 / 16)


@dataclass(frozen=True)
class Method:
    """A method, and the recipe of its paper that it starts from."""

    config: str  #: Shipped recipe
    teachers: tuple[int, int]  #: Fewest and most teachers that the method takes
    stages: int = 1  #: Stages of the run


METHODS = {
    'dbot': Method('dbot/dbot_vit-base-p16_8xb512-2x800e_in1k', (0, 0), stages=2),
    'mae': Method('mae/mae_vit-base-p16_8xb512-1600e_in1k', (0, 0)),
    'maskdistill': Method('maskdistill/maskdistill_vit-base-p16_8xb256-300e_in1k', (1, 8)),
    'dmae': Method('dmae/dmae_vit-base-p16_teacher-vit-large_8xb512-100e_in1k', (1, 8)),
    'hybrid': Method('hybrid_distill/hybrid_vit-base-p16_mae-clip_8xb128-300e_in1k', (2, 2)),
}


@dataclass(frozen=True)
class Data:
    """The images: how many, and the median length of their short edges in pixels."""

    images: int
    short_edge: int


@dataclass(frozen=True)
class Machine:
    """What trains: number of GPUs (0 for a CPU), processor cores, and whether bfloat16 is fast."""

    gpus: int
    cores: int
    bfloat16: bool

    @property
    def processes(self) -> int:
        """One for each GPU."""
        return max(self.gpus, 1)


@dataclass(frozen=True)
class Request:
    """What the user asked for; None where we choose."""

    method: str | None = None  #: Key of ``METHODS``
    teachers: int = 0  #: Number of teachers
    student: str | None = None  #: Key of ``STUDENTS``
    size: int | None = None  #: Side of the crops, pixels
    epochs: float | None = None  #: Epochs of the whole run
    batch: int | None = None  #: Images of an update, over all processes and accumulated steps


@dataclass(frozen=True)
class Schedule:
    """The method's own schedule: rate, the batch it is for, epochs of a stage, final rate."""

    rate: float
    batch: int
    epochs: int
    final: float


@dataclass
class Recipe:
    """The numbers of a run, and why."""

    method: str  #: Key of ``METHODS``
    student: str  #: Key of ``STUDENTS``
    size: int  #: Side of the crops, pixels
    patch: int  #: Side of a patch, pixels
    batch: int  #: Images of an update
    accumulate: int  #: Steps that are added up to an update
    processes: int  #: Processes that train
    stages: int  #: Stages
    steps: int  #: Updates of a stage
    warm_up: int  #: Updates of the warm-up of a stage
    rate: float  #: Peak learning rate
    final: float  #: Learning rate at the end of a stage
    decoder: tuple[int, int]  #: Width and depth of a decoder
    workers: int  #: Processes that load data, for each that trains
    bfloat16: bool  #: Whether to train in mixed precision
    reasons: dict[str, str] = field(default_factory=dict)  #: Why, by the name of the number

    @property
    def images_at_once(self) -> int:
        """Images of a step of one process."""
        return self.batch // self.accumulate // self.processes

    @property
    def iterations(self) -> int:
        """Steps of the whole run; accumulated ones count singly, as mmengine counts them."""
        return self.stages * self.steps * self.accumulate

    def halve(self) -> None:
        """Compute half as many images at once, and accumulate twice as many steps. Raises ValueError at one image."""
        if self.images_at_once < 2:
            raise ValueError(
                f'One image of {self.size} px does not fit in memory with --student {self.student}. Choose a smaller '
                '--student or --size.'
            )
        self.accumulate *= 2
        self.reasons['accumulate'] = f'{self.images_at_once} images at once are what fits in memory'


def choose(request: Request, data: Data, machine: Machine, schedules: Mapping[str, Schedule]) -> Recipe:
    """Choose what the user did not; ``schedules`` are the papers', by method. Raises ValueError for what does not fit."""
    reasons: dict[str, str] = {}
    method = choose_method(request, machine, reasons)
    student = request.student or choose_student(data, machine, reasons)
    size, patch = choose_size(request, data, machine, reasons)
    schedule, stages = schedules[method], METHODS[method].stages
    batch = choose_batch(request, data, machine, schedule, reasons)
    steps = choose_steps(request, schedule, stages, data.images / batch, reasons)
    share = batch // machine.processes
    accumulate = 1
    while share // accumulate > DEVICE_BATCH[student]:
        accumulate *= 2
    if accumulate > 1:
        reasons['accumulate'] = f'{DEVICE_BATCH[student]} images at once; the trial steps measure what fits (ours)'
    width, depth = STUDENTS[student]
    reasons['rate'] = (
        f"the method's {schedule.rate:.4g} at batch {schedule.batch}, times the root of the batches' ratio"
    )
    reasons['decoder'] = "two thirds of the student's width, and of its depth up to 8, as MAE's (512 of 768, 8 of 12)"
    return Recipe(
        method=method,
        student=student,
        size=size,
        patch=patch,
        batch=batch,
        accumulate=accumulate,
        processes=machine.processes,
        stages=stages,
        steps=steps,
        warm_up=max(1, round(WARM_UP * steps)),
        rate=schedule.rate * (batch / schedule.batch) ** 0.5,
        final=schedule.final * (batch / schedule.batch) ** 0.5,
        decoder=(width * 2 // 3 // HEAD_WIDTH * HEAD_WIDTH, min(depth * 2 // 3, 8)),
        workers=min(8, max(machine.cores // machine.processes - 1, 1)),
        bfloat16=machine.bfloat16,
        reasons=reasons,
    )


def choose_method(request: Request, machine: Machine, reasons: dict[str, str]) -> str:
    """Choose the method by the number of teachers, or check that it takes as many."""
    method = request.method
    if method is None:
        method = 'maskdistill' if request.teachers else 'dbot' if machine.gpus else 'mae'
        alone = 'needs no teacher (ours)' if machine.gpus else 'the best of short runs (measured: docs/small_data.md)'
        reasons['method'] = 'takes any number of teachers (ours)' if request.teachers else alone
    fewest, most = METHODS[method].teachers
    if not fewest <= request.teachers <= most:
        number = str(fewest) if fewest == most else f'{fewest} to {most}'
        fits = [name for name, other in METHODS.items() if other.teachers[0] <= request.teachers <= other.teachers[1]]
        raise ValueError(
            f'--method {method} takes {number} teachers, got {request.teachers}. '
            + (f'With {request.teachers}, use --method {" or ".join(fits)}.' if fits else 'Give fewer --teacher.')
        )
    return method


def choose_student(data: Data, machine: Machine, reasons: dict[str, str]) -> str:
    """Choose a larger student for more images; on a CPU the smallest."""
    if machine.gpus == 0:
        reasons['student'] = 'the smallest: there is no GPU (ours)'
        return 'ti'
    student = next((name for name, most in STUDENT_LIMITS.items() if data.images <= most), 'l')
    reasons['student'] = f'for {data.images:,} images (ours)'
    return student


def choose_size(request: Request, data: Data, machine: Machine, reasons: dict[str, str]) -> tuple[int, int]:
    """Choose the side of the crops and of the patches."""
    size = request.size
    if size is None:
        largest = 224 if machine.gpus else CPU_SIZE
        size = min(largest, max(data.short_edge // 4 * 4, MIN_GRID * 4))
        if size == largest:
            reasons['size'] = "the papers'" if machine.gpus else 'half of 224: there is no GPU (ours)'
        else:
            step = next((patch for patch in PATCHES if size // patch >= MIN_GRID), PATCHES[-1])
            size = size // step * step
            reasons['size'] = f'half of the images have a short edge of at most {data.short_edge} px (ours)'
    patch = next((patch for patch in PATCHES if size % patch == 0 and size // patch >= MIN_GRID), None)
    if patch is None:
        raise ValueError(f'--size {size}: give a multiple of 4 of at least {MIN_GRID * 4}; 224 is usual.')
    reasons['patch'] = (
        f"the papers' {PATCHES[0]}" if patch == PATCHES[0] else f'at least {MIN_GRID} patches a side (ours)'
    )
    return size, patch


def choose_batch(request: Request, data: Data, machine: Machine, schedule: Schedule, reasons: dict[str, str]) -> int:
    """Choose a power of two that leaves several steps an epoch."""
    if request.batch is not None:
        if request.batch > data.images:
            raise ValueError(
                f'--batch {request.batch} is larger than the data: there are {data.images} images. Give at most '
                f'{data.images // 2}, or leave --batch out.'
            )
        if request.batch % machine.processes:
            raise ValueError(f'--batch {request.batch} cannot be divided among {machine.processes} GPUs.')
        return request.batch
    most = schedule.batch if machine.gpus else CPU_BATCH
    few = max(min(data.images // MIN_EPOCH, most), min(MIN_BATCH, data.images))
    batch = max(2 ** (few.bit_length() - 1), machine.processes)
    if not machine.gpus and batch == CPU_BATCH:
        reasons['batch'] = 'many small steps: there is no GPU (ours)'
    elif batch == schedule.batch:
        reasons['batch'] = "the method's"
    else:
        reasons['batch'] = f'at least {MIN_EPOCH} steps an epoch, and at least {MIN_BATCH} (ours)'
    return batch


def choose_steps(request: Request, schedule: Schedule, stages: int, epoch: float, reasons: dict[str, str]) -> int:
    """Choose the updates of a stage; ``epoch`` is the number of updates in one epoch."""
    if request.epochs is not None:
        reasons['steps'] = f'{request.epochs:g} epochs of {epoch:.1f} steps' + (
            f', in {stages} stages' if stages > 1 else ''
        )
        return max(2, round(request.epochs * epoch / stages))  # the first is the warm-up
    steps = round(schedule.epochs * epoch)
    if steps >= GOOD_STAGE:
        reasons['steps'] = f"the method's {schedule.epochs} epochs a stage"
        return steps
    reasons['steps'] = f'at least {GOOD_STAGE} a stage (ours)'
    return GOOD_STAGE


def fit_to_time(recipe: Recipe, seconds: float) -> None:
    """Shorten a run on a CPU to about ten minutes, given the measured time of a step. Stages keep 500 steps."""
    affordable = int(CPU_SECONDS / seconds / recipe.stages / recipe.accumulate)
    if affordable >= recipe.steps:
        return
    recipe.steps = max(affordable, MIN_STAGE)
    recipe.warm_up = max(1, round(WARM_UP * recipe.steps))
    why = (
        'ten minutes without a GPU' if recipe.steps == affordable else f'the fewest that are not hopeless, {MIN_STAGE}'
    )
    recipe.reasons['steps'] = f'{why}, at {seconds:.2f} s a step; more --epochs learn more (ours)'


def table(recipe: Recipe, data: Data) -> list[tuple[str, str, str]]:
    """Return the plan for people: name, value and reason of each number."""
    width, depth = recipe.decoder
    epochs = recipe.stages * recipe.steps * recipe.batch / data.images
    values: dict[str, Any] = {
        'method': recipe.method,
        'student': f'ViT-{recipe.student.capitalize()}/{recipe.patch}',
        'size': f'{recipe.size} px',
        'patch': f'{recipe.patch} px',
        'batch': f'{recipe.batch} images',
        'accumulate': f'{recipe.accumulate} steps',
        'steps': f'{recipe.stages} × {recipe.steps:,} ({epochs:,.0f} epochs)',
        'rate': f'{recipe.rate:.3g}, {recipe.warm_up} steps of warm-up',
        'decoder': f'{width} wide, {depth} deep',
    }
    if recipe.method in ('maskdistill', 'hybrid'):
        del values['decoder']
    if recipe.accumulate == 1:
        del values['accumulate']
    return [(name, value, recipe.reasons.get(name, 'given')) for name, value in values.items()]
