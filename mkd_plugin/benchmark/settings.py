"""What is benchmarked, and how."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mkd_plugin.benchmark.suites import SUITES, TASKS, Suite, Task
from mkd_plugin.engine.provenance import fingerprint

SCRATCH = 'scratch'
UNREADABLE = re.compile(r'[\s,()\[\]"\']')  # mmengine reads these of --cfg-options as something else than a path


@dataclass(frozen=True)
class Start:
    """What a training starts from.

    Attributes:
        name: In tables.
        path: A checkpoint; None for random weights.
        sha256: Of the file.
    """

    name: str
    path: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Settings:
    """Of a benchmark.

    Attributes:
        suite: One of ``SUITES``.
        tasks: Some of ``TASKS``; empty for all that the suite has.
        seeds: How many trainings of each; None for the suite's number.
        against: Name of the start that the others are compared with; None for no comparison.
        recipe: Whose fine-tuning, with the suite 'full': a folder of configs/.
        arch: 'base' or 'large', with the suite 'full'.
        configs: Task → config to use in place of the suite's.
        options: As ``--cfg-options`` of tools/train.py; ``TASK:KEY=VALUE`` is for one task only.
        processes: Of a training (GPUs); more than one go through tools/dist_train.sh.
        jobs: Trainings at a time.
        pictures: Validation images that predictions are drawn on.

    Raises:
        ValueError: A value that is not allowed.
    """

    suite: str = 'digit-scenes'
    tasks: Sequence[str] = ()
    seeds: int | None = None
    against: str | None = None
    recipe: str = 'dbot'
    arch: str = 'base'
    configs: Mapping[str, str] = field(default_factory=dict)
    options: Sequence[str] = ()
    processes: int = 1
    jobs: int = 1
    pictures: int = 4

    def __post_init__(self) -> None:
        if self.suite not in SUITES:
            raise ValueError(f'--suite {self.suite}: use one of {list(SUITES)}.')
        named = [text.partition(':')[0] for text in self.options if ':' in text.partition('=')[0]]
        unknown = [name for name in (*self.tasks, *self.configs, *named) if name not in TASKS]
        if unknown:
            raise ValueError(f'There is no task {unknown[0]!r}. Tasks are {list(TASKS)}.')
        wrong = [text for text in self.options if '=' not in text]
        if wrong:
            raise ValueError(f'--cfg-options {wrong[0]}: give KEY=VALUE, or TASK:KEY=VALUE for one task.')
        for name in ('seeds', 'processes', 'jobs'):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f'--{name} {getattr(self, name)}: it must be at least 1.')

    def build(self) -> Suite:
        """The suite with the configs that were given.

        Raises:
            ValueError: There is no such config, or the suite has no such task.
        """
        suite = SUITES[self.suite](self.recipe, self.arch)
        tasks = dict(suite.tasks)
        for name, config in self.configs.items():
            if not Path(config).is_file():
                raise ValueError(f'--config {name}={config}: there is no such file.')
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
        """Those for a task."""
        own = []
        for text in self.options:
            name, separator, rest = text.partition(':')
            if separator and name in TASKS:
                own += [rest] if name == task else []
            else:
                own.append(text)
        return own


def read_starts(checkpoints: Sequence[str], against: str | None) -> dict[str, Start]:
    """Name → start, in the order given; random weights come last, if they are compared with.

    Args:
        checkpoints: ``[NAME=]FILE`` each; the file's name without ending by default.
        against: 'scratch', one of the names, or None.

    Raises:
        ValueError: A file is not there, a name is taken twice, or there is none of that name to compare with.
    """
    starts: dict[str, Start] = {}
    for text in checkpoints:
        name, separator, path = text.partition('=')
        if not separator:
            name, path = Path(text).stem, text
        if name in starts or name == SCRATCH:
            raise ValueError(f'{text}: {name!r} is taken. Give each checkpoint a name of its own: NAME={path}.')
        if not Path(path).expanduser().is_file():
            raise ValueError(f'{path}: there is no such checkpoint.')
        about = fingerprint(path)
        if UNREADABLE.search(about['path']):
            raise ValueError(
                f'{about["path"]}: spaces, commas, quotes and brackets cannot be passed through --cfg-options. Move the file, '
                'or make a link in a folder without them and give that.'
            )
        starts[name] = Start(name, about['path'], about['sha256'])
    if against == SCRATCH:
        starts[SCRATCH] = Start(SCRATCH)
    if against is not None and against not in starts:
        raise ValueError(f'--against {against}: use {SCRATCH!r}, or one of {list(starts)}.')
    return starts
