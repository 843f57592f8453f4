"""Which tasks a benchmark has: their configs, metrics and data."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mkd_plugin.datasets.digit_scenes import SETTINGS, write_digit_scenes
from mkd_plugin.utils.configs import config_root


@dataclass(frozen=True)
class Metric:
    """A number of the host's evaluator.

    Attributes:
        key: Its name in ``metrics.jsonl``.
        label: What papers call it.
        scale: From the host's unit to per cent.
        absent: What it is if the evaluator does not give it; None if that is an error.
    """

    key: str
    label: str
    scale: float = 1.0
    absent: float | None = None


@dataclass(frozen=True)
class Task:
    """A fine-tuning.

    Attributes:
        name: One of ``TASKS``.
        config: File.
        scratch: Another one for training from random weights, which want another rate or layer decay.
        tree: What its data look like on the disk.
        minutes: About how long a training takes where this was measured; only the time left depends on it.
    """

    name: str
    config: Path
    scratch: Path | None = None
    tree: str = ''
    minutes: float = 1.0

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The numbers that count."""
        return TASKS[self.name].metrics

    @property
    def host(self) -> str:
        """The package that trains it."""
        return TASKS[self.name].host


@dataclass(frozen=True)
class Kind:
    """What all trainings of a task share."""

    host: str
    metrics: tuple[Metric, ...]


@dataclass(frozen=True)
class Suite:
    """Tasks, and how often.

    Attributes:
        tasks: Name → task.
        seeds: By default.
        prepare: Makes the data if they are not there.
        stamp: A file that says which data they are; what was measured on others does not count.
    """

    tasks: Mapping[str, Task]
    seeds: int = 1
    prepare: Callable[[], object] = lambda: None
    stamp: Path | None = None


SCENES = Path('data/digit_scenes')

# mmdet's CocoMetric gives no number if nothing was detected
DETECTION = (Metric('coco/bbox_mAP', 'AP-box', 100, 0.0), Metric('coco/segm_mAP', 'AP-mask', 100, 0.0))
TASKS = {
    'classification': Kind('mmpretrain', (Metric('accuracy/top1', 'top-1'),)),
    'detection': Kind('mmdet', DETECTION),
    'segmentation': Kind('mmseg', (Metric('mIoU', 'mIoU'), Metric('mAcc', 'mAcc'))),
}

TREES = {
    'classification': """data/imagenet/
    train/<class>/*.JPEG
    val/<class>/*.JPEG""",
    'detection': """data/coco/
    annotations/instances_train2017.json, instances_val2017.json
    train2017/*.jpg
    val2017/*.jpg""",
    'segmentation': """data/ade/ADEChallengeData2016/
    images/training/*.jpg, images/validation/*.jpg
    annotations/training/*.png, annotations/validation/*.png""",
}
# Below configs/<recipe>/finetune/, the first that is there.
FULL = {
    'classification': ('in1k/*-ft_vit-{arch}-p16_[0-9]*_in1k.py',),
    'detection': ('coco/*-cascade_vit-{arch}-p16_1x_coco.py', 'coco/*-mask-rcnn_vit-{arch}-p16_1x_coco.py'),
    'segmentation': ('ade20k/*-upernet_vit-{arch}-p16_160k_ade20k-512.py',),
}


def full_suite(recipe: str, arch: str) -> Suite:
    """ImageNet-1K, COCO and ADE20K by the recipes of a method; a task that it has no recipe for is not among them.

    Args:
        recipe: A folder of configs/ with fine-tuning.
        arch: 'base' or 'large'.

    Raises:
        ValueError: There are no such recipes.
    """
    folder = config_root() / recipe / 'finetune'
    tasks = {}
    for name, patterns in FULL.items():
        found = [path for pattern in patterns for path in sorted(folder.glob(pattern.format(arch=arch)))]
        if found:
            tasks[name] = Task(name, found[0], tree=TREES[name])
    if not tasks:
        known = sorted(path.parent.name for path in config_root().glob('*/finetune'))
        raise ValueError(
            f'--recipe {recipe} --arch {arch}: there are no such fine-tuning configs. Recipes are {known}, sizes base, large.'
        )
    return Suite(tasks)


def digit_scenes(recipe: str, arch: str) -> Suite:
    """Scenes of handwritten digits, made here; minutes on a CPU. There is one recipe, of one size."""
    ours, plain = config_root() / 'dbot/finetune/digit_scenes', config_root() / 'downstream'
    tasks = (
        Task(
            'classification',
            ours / 'dbot-ft_digit-scenes.py',
            plain / 'mmpretrain/vit-digits_ft_digit-scenes.py',
            minutes=3,
        ),
        Task(
            'detection',
            ours / 'dbot-cascade_digit-scenes.py',
            plain / 'mmdet/vit-digits_cascade-mask-rcnn_digit-scenes.py',
            minutes=10,
        ),
        Task(
            'segmentation',
            ours / 'dbot-upernet_digit-scenes.py',
            plain / 'mmseg/vit-digits_upernet_digit-scenes.py',
            minutes=6,
        ),
    )
    return Suite({task.name: task for task in tasks}, seeds=3, prepare=write_scenes, stamp=SCENES / SETTINGS)


def write_scenes() -> None:
    """Write the scenes, unless they are there; others than the usual ones stay, and half ones are completed."""
    settings = json.loads((SCENES / SETTINGS).read_text()) if (SCENES / SETTINGS).is_file() else {'complete': False}
    if not settings.pop('complete'):
        settings.pop('layout', None)  # of the files, which is the writer's business
        write_digit_scenes(SCENES, **settings)


SUITES: dict[str, Callable[[str, str], Suite]] = {'digit-scenes': digit_scenes, 'full': full_suite}
