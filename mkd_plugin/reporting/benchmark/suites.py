"""What a benchmark trains: suites of tasks with their configs, metrics and data, and the settings of a run."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mkd_plugin.engine.provenance import fingerprint
from mkd_plugin.reporting.page import texts
from mkd_plugin.utils.configs import config_root

SCRATCH = 'scratch'
UNREADABLE = re.compile(r'[\s,()\[\]"\']')  # --cfg-options would not read these characters as part of a path


@dataclass(frozen=True)
class Metric:
    """A score of the host's evaluator."""

    key: str  #: in ``metrics.jsonl``
    label: str  #: in papers
    scale: float = 1.0  #: factor from the host's unit to per cent
    absent: float | None = None  #: value if the evaluator does not report it; None if that is an error


@dataclass(frozen=True)
class Kind:
    """The package that trains a task, and the scores that are compared."""

    host: str
    metrics: tuple[Metric, ...]


TASKS = {
    'classification': Kind('mmpretrain', (Metric('accuracy/top1', 'top-1'),)),
    # mmdet's CocoMetric gives no number if nothing was detected
    'detection': Kind(
        'mmdet', (Metric('coco/bbox_mAP', 'AP-box', 100, 0.0), Metric('coco/segm_mAP', 'AP-mask', 100, 0.0))
    ),
    'segmentation': Kind('mmseg', (Metric('mIoU', 'mIoU'), Metric('mAcc', 'mAcc'))),
}


@dataclass(frozen=True)
class Task:
    """A fine-tuning task of a suite."""

    name: str  #: one of ``TASKS``
    config: Path
    #: config for training from random weights, if it needs another learning rate or layer decay
    scratch: Path | None = None
    tree: str = ''  #: expected layout of the data on disk
    minutes: float = 1.0  #: typical duration of a training; only the estimated time left depends on it

    @property
    def kind(self) -> Kind:
        """Properties that do not depend on the suite."""
        return TASKS[self.name]


@dataclass(frozen=True)
class Suite:
    """A set of tasks."""

    tasks: Mapping[str, Task]
    seeds: int = 1  #: by default
    prepare: Callable[[], object] = lambda: None  #: creates the data if they do not exist
    stamp: Path | None = None  #: identifies the data; results on other data are not reused


# Patterns below configs/<recipe>/finetune/; the first match is used.
FULL = {
    'classification': ('in1k/*-ft_vit-{arch}-p16_[0-9]*_in1k.py',),
    'detection': ('coco/*-cascade_vit-{arch}-p16_1x_coco.py', 'coco/*-mask-rcnn_vit-{arch}-p16_1x_coco.py'),
    'segmentation': ('ade20k/*-upernet_vit-{arch}-p16_160k_ade20k-512.py',),
}


def full_suite(recipe: str, arch: str) -> Suite:
    """ImageNet-1K, COCO and ADE20K with the configs below configs/RECIPE/finetune. Tasks without one are left out."""
    folder = config_root() / recipe / 'finetune'
    tasks = {}
    for name, patterns in FULL.items():
        found = [path for pattern in patterns for path in sorted(folder.glob(pattern.format(arch=arch)))]
        if found:
            tasks[name] = Task(name, found[0], tree=texts('benchmark')['tasks'][name]['tree'])
    if not tasks:
        known = sorted(path.parent.name for path in config_root().glob('*/finetune'))
        raise ValueError(
            f'--recipe {recipe} --arch {arch}: no such fine-tuning configs. Use one of the recipes {known} and base or large.'
        )
    return Suite(tasks)


def digit_scenes(recipe: str, arch: str) -> Suite:
    """The suite of projects/digit_scenes, which a wheel does not contain."""
    file = config_root().parent / 'projects' / 'digit_scenes' / 'suite.py'
    if not file.is_file():
        raise ValueError(
            '--suite digit-scenes needs a checkout of the repository: an installed wheel has no projects/.'
        )
    suite: Suite = runpy.run_path(str(file))['build_suite'](recipe, arch)
    return suite


SUITES: dict[str, Callable[[str, str], Suite]] = {'digit-scenes': digit_scenes, 'full': full_suite}


@dataclass(frozen=True)
class Start:
    """The weights that a training starts from: a checkpoint with its digest, or random weights."""

    name: str
    path: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Settings:
    """Settings of a benchmark. Raises ValueError for a value that is not allowed."""

    suite: str = 'digit-scenes'  #: one of ``SUITES``
    tasks: Sequence[str] = ()  #: some of ``TASKS``; empty for all tasks of the suite
    seeds: int | None = None  #: number of seeds; None for the default of the suite
    against: str | None = None  #: name of the start to compare with; None for no comparison
    recipe: str = 'dbot'  #: folder of configs/ with the fine-tuning configs of the suite 'full'
    arch: str = 'base'  #: 'base' or 'large', for the suite 'full'
    configs: Mapping[str, str] = field(default_factory=dict)  #: task → config that replaces the one of the suite
    options: Sequence[str] = ()  #: as ``--cfg-options`` of tools/train.py; ``TASK:KEY=VALUE`` applies to one task only
    processes: int = 1  #: processes (GPUs) per training; more than one are started by tools/dist_train.sh
    jobs: int = 1  #: trainings at a time
    pictures: int = 4  #: validation images to draw predictions on

    def __post_init__(self) -> None:
        if self.suite not in SUITES:
            raise ValueError(f'--suite {self.suite}: use one of {list(SUITES)}.')
        named = [text.partition(':')[0] for text in self.options if ':' in text.partition('=')[0]]
        unknown = [name for name in (*self.tasks, *self.configs, *named) if name not in TASKS]
        if unknown:
            raise ValueError(f'Unknown task {unknown[0]!r}. Use some of {list(TASKS)}.')
        wrong = [text for text in self.options if '=' not in text]
        if wrong:
            raise ValueError(f'--cfg-options {wrong[0]}: give KEY=VALUE, or TASK:KEY=VALUE for one task.')
        for name in ('seeds', 'processes', 'jobs'):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f'--{name} {getattr(self, name)}: it must be at least 1.')

    def build(self) -> Suite:
        """Build the suite, with the given configs."""
        suite = SUITES[self.suite](self.recipe, self.arch)
        tasks = dict(suite.tasks)
        for name, config in self.configs.items():
            if not Path(config).is_file():
                raise ValueError(f'--config {name}={config}: no such file.')
            tasks[name] = Task(name, Path(config), tree=tasks[name].tree if name in tasks else '')
        missing = [name for name in self.tasks if name not in tasks]
        if missing:
            raise ValueError(
                f'--tasks {missing[0]}: --recipe {self.recipe} --arch {self.arch} has {list(tasks)}. Give its config with '
                f'--config {missing[0]}=FILE.'
            )
        chosen = {name: tasks[name] for name in TASKS if name in (self.tasks or tasks) and name in tasks}
        return Suite(chosen, self.seeds or suite.seeds, suite.prepare, suite.stamp)

    def options_of(self, task: str) -> list[str]:
        own = []
        for text in self.options:
            name, separator, rest = text.partition(':')
            if separator and name in TASKS:
                own += [rest] if name == task else []
            else:
                own.append(text)
        return own


def read_starts(checkpoints: Sequence[str], against: str | None) -> dict[str, Start]:
    """Return name → start in the given order; random weights come last, if they are compared with.

    Each checkpoint is ``[NAME=]FILE``; the default name is that of the file without its suffix.
    """
    starts: dict[str, Start] = {}
    for text in checkpoints:
        name, separator, path = text.partition('=')
        if not separator or Path(text).expanduser().is_file():  # a path may have '='
            name, path = Path(text).stem, text
        if name in starts or name == SCRATCH:
            raise ValueError(
                f'{text}: the name {name!r} is already used. Give each checkpoint its own name: NAME={path}.'
            )
        if not Path(path).expanduser().is_file():
            raise ValueError(f'{path}: no such checkpoint.')
        about = fingerprint(path)
        if UNREADABLE.search(about['path']):
            raise ValueError(
                f'{about["path"]}: spaces, commas, quotes and brackets cannot be passed through --cfg-options. Move the file, '
                'or link to it from a folder without these characters.'
            )
        starts[name] = Start(name, about['path'], about['sha256'])
    if against == SCRATCH:
        starts[SCRATCH] = Start(SCRATCH)
    if against is not None and against not in starts:
        raise ValueError(f'--against {against}: use {SCRATCH!r}, or one of {list(starts)}.')
    if against not in (None, SCRATCH) and len(starts) < 2:
        raise ValueError(f'--against {against}: there is no other start to compare it with. Give another checkpoint.')
    return starts
