"""The runs of the experiment: what each needs, how it is run, and which setting of the grid is chosen."""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner, ValLoop

import mkd_plugin
from mkd_plugin.reporting.experiment import Job, JobContext
from mkd_plugin.reporting.store import key_of
from projects.dense_gains.data import MEASURES, first_annotations, measuring, place, scores_of
from projects.dense_gains.frozen import linear_segmentor
from projects.dense_gains.recipes import (
    RECIPES,
    SCRATCH,
    STARTS,
    Checkpoint,
    finetune_config,
    pretrain_config,
)
from projects.dense_gains.scenes import LAYOUT
from projects.dense_gains.settings import TASKS, Settings, Tuning
from projects.paper_claims.kept import KeptStore

# mmpretrain imports an op that is not compiled here and that nothing needs
warnings.filterwarnings('ignore', message='Fail to import ``MultiScaleDeformableAttention``')

FINETUNING_SEEDS = 10_000  # added to the seed of the pre-training
PARTS = 20  # points of the curve of the training loss
COSTS = {'frozen': 300}  # in training steps, like the others'


@dataclass(frozen=True)
class Run:
    """A pre-training, a fine-tuning of the grid, a final fine-tuning, or a linear segmentor.

    Attributes:
        kind: 'pretrain', 'tune', 'final' or 'frozen'.
        name: Start or teacher.
        seed: Seed of the pre-training.
        task: Of a fine-tuning.
        tuning: Of a fine-tuning.
    """

    kind: str
    name: str
    seed: int
    task: str = ''
    tuning: Tuning | None = None

    def __str__(self) -> str:
        text = f'{self.kind} {self.name}, seed {self.seed}'
        return text if self.tuning is None else f'{text}, {self.task}, {self.tuning}'


@dataclass(frozen=True)
class Experiment:
    """All runs with given settings. A run's key covers its config and seed, and those of the runs it depends on.

    Attributes:
        settings: Sizes and lengths.
        root: Folder of the results.
        scenes: Folder of the scenes.
        starts: Starts that are compared; scratch must be one of them.
        kept: File of all results, by default jobs.jsonl in ``root``; see :class:`KeptStore`.
    """

    settings: Settings
    root: Path
    scenes: Path
    starts: tuple[str, ...] = STARTS
    kept: Path | None = None

    @cached_property
    def store(self) -> KeptStore:
        """Results of finished runs."""
        return KeptStore(self.root, self.kept or self.root / 'jobs.jsonl')

    def grid(self, length: str) -> list[Run]:
        """Return the runs of the grid with the first seed; 'long' ones need the results of all short ones."""
        runs = []
        for task in TASKS:
            for start in self.starts:
                settings = self.settings.grid(task) if length == 'short' else [self.extended(start, task)]
                runs += [Run('tune', start, 0, task, tuning) for tuning in settings]
        return self.with_teachers(runs)

    def extended(self, start: str, task: str) -> Tuning:
        """Return the best short setting of a start, with the long length."""
        best = max(self.settings.grid(task), key=lambda tuning: self.tuned(start, task, tuning))
        return Tuning(best.lr, best.decay, 'long')

    def tuned(self, start: str, task: str, tuning: Tuning) -> float:
        """Return the score of a setting on the split 'val': mIoU, or the mean of box and mask AP."""
        scores = self.value(Run('tune', start, 0, task, tuning))['val']
        return sum(scores[name] for name in MEASURES[task]) / len(MEASURES[task])

    def chosen(self, start: str, task: str) -> Tuning:
        """Return the best of all settings that were run."""
        candidates = [*self.settings.grid(task), self.extended(start, task)]
        return max(candidates, key=lambda tuning: self.tuned(start, task, tuning))

    def finals(self) -> list[Run]:
        """Return the runs that are reported: every start with its chosen settings and all seeds."""
        runs = []
        for seed in range(self.settings.seeds):
            for start in self.starts:
                runs += [Run('final', start, seed, task, self.chosen(start, task)) for task in TASKS]
            runs += [Run('frozen', start, seed) for start in self.starts]
        return self.with_teachers(runs)

    def with_teachers(self, runs: Iterable[Run]) -> list[Run]:
        """Put the pre-trainings that runs need before them."""
        found: dict[Run, None] = {}
        for run in runs:
            for earlier in self.with_teachers(self.dependencies(run)):
                found[earlier] = None
            found[run] = None
        return list(found)

    def needed(self, runs: Sequence[Run]) -> list[Run]:
        """Return these runs without the pre-trainings that only finished ones of them start from."""
        return self.store.needed(runs, self.key, self.dependencies)

    def dependencies(self, run: Run) -> list[Run]:
        """Return the runs that must be finished before."""
        if run.kind != 'pretrain':
            return [] if run.name == SCRATCH else [Run('pretrain', run.name, run.seed)]
        return [Run('pretrain', name, run.seed) for name in RECIPES[run.name].teachers]

    def jobs(self, runs: Iterable[Run]) -> list[Job]:
        """Return the runs as jobs of mkd_plugin's experiment runner."""
        return [
            Job(
                str(run),
                self.key(run),
                partial(self.execute, run),
                tuple(map(self.key, self.dependencies(run))),
                cost=self.steps(run),
                group=' '.join([run.kind, run.task, run.tuning.length] if run.tuning else [run.kind, run.name]),
            )
            for run in runs
        ]

    def steps(self, run: Run) -> int:
        """Return the approximate cost of a run in training steps."""
        if run.kind == 'pretrain':
            return RECIPES[run.name].steps(self.settings)
        return COSTS[run.kind] if run.tuning is None else self.settings.lengths[run.task][run.tuning.length]

    @cached_property
    def _keys(self) -> dict[Run, str]:
        return {}

    def key(self, run: Run) -> str:
        """Return the key of a run: a digest of scenes, config and seed, with keys instead of paths."""
        if run not in self._keys:
            content = dict(
                version=mkd_plugin.__version__,
                scenes=dict(layout=LAYOUT, counts=dict(self.settings.counts), side=self.settings.side),
                kind=run.kind,
                seed=run.seed,
                points=self.settings.points if run.kind == 'final' else None,
                config=self._content(run),
            )
            self._keys[run] = key_of('-'.join(filter(None, (run.kind, run.name, run.task))), **content)
        return self._keys[run]

    def _content(self, run: Run) -> dict[str, Any]:
        if run.kind == 'frozen':
            network = None if run.name == SCRATCH else self._relative(run.name, run.seed)
            return dict(arch=self.settings.arch, labelled=self.settings.labelled, network=network)
        return self._config(run, lambda name: self._relative(name, run.seed)).to_dict()

    def _relative(self, name: str, seed: int) -> str:
        file = RECIPES[name].file.format(steps=RECIPES[name].steps(self.settings))
        return f'{self.key(Run("pretrain", name, seed))}/{file}'

    def checkpoint(self, name: str, seed: int) -> str | None:
        """Return the checkpoint file of a start or teacher; None from scratch."""
        return None if name == SCRATCH else str(self.root / self._relative(name, seed))

    def _config(self, run: Run, checkpoint: Checkpoint) -> Config:
        if run.kind == 'pretrain':
            return pretrain_config(run.name, self.settings, checkpoint)
        assert run.tuning is not None
        path = None if run.name == SCRATCH else checkpoint(run.name)
        return finetune_config(run.task, self.settings, run.tuning, path)

    def value(self, run: Run) -> Any:
        """Return the result of a finished run. Raises ValueError if it is not finished."""
        record = self.store.read(self.key(run))
        if record is None:
            raise ValueError(f'This job is not finished: {run}. Run the same command again.')
        return record.value

    def execute(self, run: Run, context: JobContext) -> dict[str, Any]:
        """Run to the end, resuming an interrupted pre-training; return scores in per cent (none for a pre-training)."""
        torch.set_num_threads(1)
        if run.kind == 'frozen':
            found: dict[str, Any] = linear_segmentor(
                self.checkpoint(run.name, run.seed), run.seed, self.settings, self.scenes
            )
            return found
        cfg = self._config(run, lambda name: str(self.root / self._relative(name, run.seed)))
        cfg = Config(cfg.to_dict(), filename=cfg.filename, format_python_code=False)  # yapf would take seconds
        cfg.work_dir, cfg.experiment_name, cfg.log_level = str(context.work_dir), context.work_dir.name, 'ERROR'
        cfg.default_hooks.progress.enabled = False
        cfg.resume = run.kind == 'pretrain'
        if not cfg.resume:  # begin an interrupted fine-tuning again: its curves would lack the points before
            cfg.work_dir = str(context.work_dir / 'attempt')
            shutil.rmtree(cfg.work_dir, ignore_errors=True)
            cfg.default_hooks.pop('preemption')
        with open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere):  # pycocotools prints
            return self._pretrain(run, cfg) if run.kind == 'pretrain' else self._finetune(run, cfg, context.work_dir)

    def _pretrain(self, run: Run, cfg: Config) -> dict[str, Any]:
        cfg.train_dataloader.dataset.data_root = str(self.scenes)
        cfg.randomness.seed = run.seed
        Runner.from_cfg(cfg).train()
        return {}

    def _finetune(self, run: Run, cfg: Config, folder: Path) -> dict[str, Any]:
        place(cfg, run.task, self.scenes)
        cfg.randomness.seed = FINETUNING_SEEDS + run.seed
        if run.kind == 'final':
            cfg.train_cfg.val_interval = max(1, cfg.train_cfg.max_iters // self.settings.points)
        runner, curve = Runner.from_cfg(cfg), Curve(run.task)
        runner.register_hook(curve)
        try:
            runner.train()
        except FloatingPointError:  # the setting is worth nothing, and the others are still to be tried
            return self._nothing(run.task)
        points = list(curve.points)
        found: dict[str, Any] = dict(val=points[-1])
        if run.kind == 'tune':
            return found
        count = min(self.settings.counts['val'], self.settings.labelled)
        few = first_annotations(self.scenes, 'train', count, folder / 'train.json')
        splits = dict(train=(few, count), test=(None, None))
        for split, (file, number) in splits.items():
            loader, metric = measuring(cfg, run.task, self.scenes, split, file, number)
            found[split] = scores_of(run.task, ValLoop(runner, loader, metric).run())
        found['curves'] = {name: [point[name] for point in points] for name in MEASURES[run.task]}
        losses = runner.message_hub.log_scalars['train/loss'].data[0]
        parts = np.array_split(losses, min(PARTS, len(losses)))
        found['losses'] = [round(float(part.mean()), 4) for part in parts]
        return found

    def _nothing(self, task: str) -> dict[str, Any]:
        zeros = dict.fromkeys(MEASURES[task], 0.0)
        curves = {name: [0.0] * self.settings.points for name in zeros}
        return dict(val=zeros, train=zeros, test=zeros, curves=curves, losses=[])


class Curve(Hook):
    """Keep the scores of every validation."""

    def __init__(self, task: str) -> None:
        self.task, self.points = task, list[dict[str, float]]()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Add a point."""
        self.points.append(scores_of(self.task, metrics or {}))
