"""The jobs of an experiment, the key of each, and how one is done."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

import mkd_plugin
from mkd_plugin.datasets import draw_labelled
from reproduce.measures import measure
from reproduce.recipes import RECIPES, Checkpoint, finetune_config, pretrain_config, recipe_of
from reproduce.settings import Settings

__all__ = ['Experiment', 'Job']

# mmpretrain imports an op that it does not need and that is not compiled here
warnings.filterwarnings('ignore', message='Fail to import ``MultiScaleDeformableAttention``')

DRAWS_A_SEED = 1000  # more than anyone draws: no two seeds share a draw
DONE = 'done.json'


@dataclass(frozen=True)
class Job:
    """One thing to do.

    Attributes:
        kind: 'pretrain', 'finetune' or 'measure'.
        name: A recipe, or else a network.
        seed: Of the pre-training.
        draw: Of the labels, from 0 for each seed; for fine-tuning only.
    """

    kind: str
    name: str
    seed: int
    draw: int | None = None

    def __str__(self) -> str:
        return f'{self.kind} {self.name}, seed {self.seed}' + ('' if self.draw is None else f', draw {self.draw}')


@dataclass(frozen=True)
class Experiment:
    """Settings and places; a finished job is known by its key, which covers config and seed of it and of all before it.

    Attributes:
        settings: Sizes and lengths.
        root: A folder for each job's key.
        data_root: The digits.
    """

    settings: Settings
    root: Path
    data_root: Path

    def plan(self, networks: Iterable[str]) -> list[Job]:
        """Every job that these networks need, seed by seed, each after those it waits for."""
        jobs: dict[Job, None] = {}
        for seed in range(self.settings.seeds):
            needed: dict[Job, None] = {}
            for network in networks:
                self._add_pretraining(Job('pretrain', recipe_of(network), seed), needed)
            jobs |= needed
            for network in networks:
                jobs[Job('measure', network, seed)] = None
                jobs |= {Job('finetune', network, seed, draw): None for draw in range(self.settings.draws)}
        return list(jobs)

    def _add_pretraining(self, job: Job, jobs: dict[Job, None]) -> None:
        for earlier in self.needs(job):
            self._add_pretraining(earlier, jobs)
        jobs[job] = None

    def needs(self, job: Job) -> list[Job]:
        """What has to be done before."""
        networks = RECIPES[job.name].teachers if job.kind == 'pretrain' else (job.name,)
        return [Job('pretrain', recipe_of(network), job.seed) for network in networks]

    def steps(self, job: Job) -> int:
        """About how long it takes, in steps of training; for the time left."""
        if job.kind == 'pretrain':
            return RECIPES[job.name].lengths * self.settings.epochs * self.settings.steps_per_epoch
        return self.settings.finetune_steps if job.kind == 'finetune' else 20

    @cached_property
    def _keys(self) -> dict[Job, str]:
        return {}

    def key(self, job: Job) -> str:
        """What a result is known by: a digest of the config, with keys in place of paths, and the seed."""
        if job not in self._keys:
            cfg = self._config(job, lambda network: self._relative(network, job.seed))
            content = dict(version=mkd_plugin.__version__, kind=job.kind, seed=job.seed, draw=job.draw, config=cfg)
            text = json.dumps(content, sort_keys=True, default=str)
            self._keys[job] = f'{job.kind}-{job.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}'
        return self._keys[job]

    def _relative(self, network: str, seed: int) -> str:
        recipe = recipe_of(network)
        return f'{self.key(Job("pretrain", recipe, seed))}/{RECIPES[recipe].file(network, self.settings)}'

    def checkpoint(self, network: str, seed: int) -> str:
        """File of a network."""
        return str(self.root / self._relative(network, seed))

    def _config(self, job: Job, checkpoint: Checkpoint) -> dict[str, Any]:
        if job.kind == 'pretrain':
            return pretrain_config(job.name, self.settings, checkpoint).to_dict()
        if job.kind == 'finetune':
            return dict(labels=self.settings.labels, **finetune_config(self.settings, checkpoint(job.name)).to_dict())
        return dict(arch=self.settings.arch, checkpoint=checkpoint(job.name))

    def result(self, job: Job) -> dict[str, float] | None:
        """Scores of a finished job, in per cent (none for a pre-training), and its seconds; None if it is not finished."""
        file = self.root / self.key(job) / DONE
        return json.loads(file.read_text()) if file.is_file() else None

    def do(self, job: Job) -> None:
        """Run a job to its end, from where it was interrupted if it was."""
        began = time.time()
        folder = self.root / self.key(job)
        folder.mkdir(parents=True, exist_ok=True)
        run = {'pretrain': self._pretrain, 'finetune': self._finetune, 'measure': self._measure}[job.kind]
        scores = run(job, folder)
        half = folder / f'{DONE}.half'
        half.write_text(json.dumps(dict(**scores, seconds=round(time.time() - began, 1))) + '\n')
        half.rename(folder / DONE)

    def _pretrain(self, job: Job, folder: Path) -> dict[str, float]:
        cfg = pretrain_config(job.name, self.settings, lambda network: self.checkpoint(network, job.seed))
        cfg.randomness.seed = job.seed
        cfg.resume = True  # exactly, from the last checkpoint, if there is one
        self._place(cfg, folder)
        Runner.from_cfg(cfg).train()
        return {}

    def _finetune(self, job: Job, folder: Path) -> dict[str, float]:
        assert job.draw is not None
        number = job.seed * DRAWS_A_SEED + job.draw
        cfg = finetune_config(self.settings, self.checkpoint(job.name, job.seed))
        cfg.randomness.seed = 10_000 + number  # another than any pre-training's
        listed = draw_labelled(self.data_root, self.settings.labels, number)
        cfg.train_dataloader.dataset.ann_file = str(listed.relative_to(self.data_root))
        self._place(cfg, folder)
        runner = Runner.from_cfg(cfg)
        runner.train()
        return dict(finetuned=float(runner.message_hub.get_scalar('val/accuracy/top1').current()))

    def _measure(self, job: Job, folder: Path) -> dict[str, float]:
        return measure(self.checkpoint(job.name, job.seed), self.settings, self.data_root)

    def _place(self, cfg: Config, folder: Path) -> None:
        cfg.work_dir, cfg.experiment_name, cfg.log_level = str(folder), folder.name, 'ERROR'
        for loader in ('train_dataloader', 'val_dataloader'):
            if cfg.get(loader):
                cfg[loader].dataset.data_root = str(self.data_root)
