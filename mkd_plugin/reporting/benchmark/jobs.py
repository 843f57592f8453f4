"""The trainings of a benchmark: the command of each, its key, and how it is run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mkd_plugin.engine.metrics import METRICS, read_metrics
from mkd_plugin.preflight.config import load_config
from mkd_plugin.reporting.benchmark.suites import Metric, Settings, Start, Suite
from mkd_plugin.reporting.experiment import Job, JobContext
from mkd_plugin.reporting.store import Record, Store, key_of
from mkd_plugin.reporting.workers import threads_per_job
from mkd_plugin.utils.configs import config_root, parse_options
from mkd_plugin.version import __version__

LAYOUT = 2  # of a result; raise it when the same training gives other results
REQUEUE = 85  # exit code of a trainer that saved its state and asks to be started again


@dataclass(frozen=True)
class Training:
    """A fine-tuning run."""

    task: str
    start: str
    seed: int

    def __str__(self) -> str:
        return f'{self.task} from {self.start}, seed {self.seed}'


class Trainings:
    """All trainings of a benchmark, which keeps them below ``folder``."""

    def __init__(self, suite: Suite, starts: dict[str, Start], settings: Settings, folder: Path) -> None:
        self.suite, self.starts, self.settings = suite, starts, settings
        self.store = Store(folder / 'jobs')
        self._config = cache(self._load)  # reading the base files of a host's config takes seconds
        self._text = cache(text_of)

    def plan(self, tasks: list[str]) -> list[Training]:
        """All trainings, seed by seed, so that the first comparisons are complete early."""
        seeds = range(self.suite.seeds)
        return [Training(task, start, seed) for seed in seeds for task in tasks for start in self.starts]

    def job(self, training: Training) -> Job:
        return Job(
            name=str(training),
            key=self.key(training),
            run=partial(self.train, training),
            cost=self.suite.tasks[training.task].minutes,
            group=training.task,
            progress=partial(self.progress, training),
        )

    def file(self, training: Training) -> Path:
        task = self.suite.tasks[training.task]
        return task.scratch if task.scratch and self.starts[training.start].path is None else task.config

    def config(self, training: Training) -> Config:
        """The config with all options except start and seed, as tools/train.py reads it."""
        return self._config(self.file(training), training.task)

    def _load(self, file: Path, task: str) -> Config:
        return load_config(str(file), options=parse_options(self.settings.options_of(task)))

    def options(self, training: Training) -> list[str]:
        """The ``--cfg-options`` of the command."""
        path, part = self.starts[training.start].path, 'model.backbone.init_cfg'
        init = [f'{part}.checkpoint={path}'] if path else [f'{part}=None']
        if path and not self.config(training).model.backbone.get('init_cfg'):
            init += [f'{part}.type=Pretrained', f'{part}.prefix=backbone.']
        return [*init, f'randomness.seed={training.seed}', *self.settings.options_of(training.task)]

    def command(self, training: Training) -> list[str]:
        """The command line; it can be typed as well."""
        tools, config = config_root().parent / 'tools', str(self.file(training))
        first = [sys.executable, str(tools / 'train.py'), config]
        if self.settings.processes > 1:
            first = ['bash', str(tools / 'dist_train.sh'), config, str(self.settings.processes)]
        work_dir = str(self.work_dir(training))
        return [*first, '--work-dir', work_dir, '--resume', '--cfg-options', *self.options(training)]

    def key(self, training: Training) -> str:
        """Key that covers config, checkpoint, seed, options, data and version; of files their content, not their path."""
        stamp, start = self.suite.stamp, self.starts[training.start]
        return key_of(
            f'{training.task}-{(start.sha256 or training.start)[:8]}-seed{training.seed}',
            layout=LAYOUT,
            version=__version__,
            task=training.task,
            config=self._text(self.file(training)),
            options=self.settings.options_of(training.task),
            start=start.sha256,
            seed=training.seed,
            processes=self.settings.processes,
            data=stamp.read_text() if stamp and stamp.is_file() else None,
        )

    def work_dir(self, training: Training) -> Path:
        return self.store.work_dir(self.key(training))

    def record(self, training: Training) -> Record | None:
        """``scores`` and ``iterations`` of a finished training; None if it is not finished."""
        return self.store.read(self.key(training))

    def rows(self, training: Training) -> list[dict[str, Any]]:
        """Lines of its ``metrics.jsonl``."""
        file = self.work_dir(training) / METRICS
        return read_metrics(file) if file.is_file() else []

    def progress(self, training: Training) -> float:
        """Fraction that is done."""
        rows, loop = self.rows(training), self.config(training).train_cfg
        if not rows:
            return 0.0
        if loop.get('max_epochs'):
            return min(1.0, float(rows[-1].get('epoch', 0)) / loop['max_epochs'])
        return min(1.0, float(rows[-1]['iter']) / loop['max_iters'])

    def train(self, training: Training, context: JobContext) -> dict[str, Any]:
        """Train to the end, resuming an interrupted run, and read the scores."""
        code = context.run_command(self.command(training), env=self.environment())
        if code:
            raise context.failure('it saved its state and stopped' if code == REQUEUE else f'exit code {code}')
        rows = self.rows(training)
        try:
            scores = final_scores(rows, self.suite.tasks[training.task].kind.metrics)
        except ValueError as error:
            raise context.failure(str(error)) from error
        return dict(scores=scores, iterations=rows[-1]['iter'])

    def environment(self) -> dict[str, str]:
        """Environment of a trainer: this checkout, and its share of the cores unless OMP_NUM_THREADS is set."""
        path = os.pathsep.join(filter(None, [str(config_root().parent), os.environ.get('PYTHONPATH')]))
        threads = threads_per_job(self.settings.jobs * self.settings.processes)
        return {'OMP_NUM_THREADS': str(threads), **os.environ, 'PYTHONPATH': path, 'PYTHON': sys.executable}

    def describe(self, record: Record) -> str:
        """The main scores of a finished training."""
        metrics = self.suite.tasks[record.name.split()[0]].kind.metrics
        scores = [f'{metric.label} {record.value["scores"][metric.label]:.1f}' for metric in metrics]
        return f'{", ".join(scores)} ({record.seconds / 60:.1f} minutes)'


def text_of(file: Path) -> str:
    """A config with everything it inherits, as text."""
    return json.dumps(Config.fromfile(file).to_dict(), sort_keys=True, default=str)


def final_scores(rows: Sequence[Mapping[str, Any]], metrics: Sequence[Metric]) -> dict[str, float]:
    """The scores of the last validation, in per cent, by label; all other numbers under their own name in their own unit."""
    if not rows or rows[-1]['mode'] != 'val':
        raise ValueError('the training did not end with a validation')
    last = {name: value for name, value in rows[-1].items() if name not in ('mode', 'iter', 'epoch')}
    scores = {}
    for metric in metrics:
        value = last.pop(metric.key, None)
        if value is None and metric.absent is None:
            raise ValueError(f'the validation gave no {metric.key}, only {sorted(last)}')
        scores[metric.label] = metric.absent if value is None else round(value * metric.scale, 6)
    return {**scores, **last}
