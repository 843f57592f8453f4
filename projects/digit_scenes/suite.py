"""The benchmark suite `digit-scenes`: three fine-tunings on scenes of digits, minutes each on a CPU."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mkd_plugin.reporting.benchmark.suites import Suite, Task  # noqa: E402
from mkd_plugin.utils.files import json_dict  # noqa: E402
from projects.digit_scenes.writing import SETTINGS, write_digit_scenes  # noqa: E402

SCENES = Path('data/digit_scenes')
FROM_DBOT = ROOT / 'configs/dbot/finetune/digit_scenes'
FROM_SCRATCH = ROOT / 'configs/downstream'
TASKS = (
    Task(
        'classification',
        FROM_DBOT / 'dbot-ft_digit-scenes.py',
        FROM_SCRATCH / 'mmpretrain/vit-digits_ft_digit-scenes.py',
        minutes=3,
    ),
    Task(
        'detection',
        FROM_DBOT / 'dbot-cascade_digit-scenes.py',
        FROM_SCRATCH / 'mmdet/vit-digits_cascade-mask-rcnn_digit-scenes.py',
        minutes=10,
    ),
    Task(
        'segmentation',
        FROM_DBOT / 'dbot-upernet_digit-scenes.py',
        FROM_SCRATCH / 'mmseg/vit-digits_upernet_digit-scenes.py',
        minutes=6,
    ),
)


def build_suite(recipe: str, arch: str) -> Suite:
    """Build the suite; ``recipe`` and ``arch`` are ignored, because there is one recipe of one size."""
    return Suite({task.name: task for task in TASKS}, seeds=3, prepare=prepare_scenes, stamp=SCENES / SETTINGS)


def prepare_scenes() -> None:
    """Write the scenes, or complete an interrupted folder with the arguments that it was started with."""
    file = SCENES / SETTINGS
    settings = json_dict(file.read_bytes()) if file.is_file() else {}  # one that was cut off: no scene is written yet
    if not settings.pop('complete', False):
        settings.pop('layout', None)
        write_digit_scenes(SCENES, **settings)
