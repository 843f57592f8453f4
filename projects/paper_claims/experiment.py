"""The runs of the experiment: which runs a claim needs, how each is run, and the report of their scores."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner

import mkd_plugin
from mkd_plugin.datasets import draw_labelled
from mkd_plugin.reporting.experiment import Job, JobContext
from mkd_plugin.reporting.store import Store, key_of
from projects.paper_claims.claims import Claim
from projects.paper_claims.measures import measure
from projects.paper_claims.recipes import RECIPES, Checkpoint, finetune_config, pretrain_config, recipe_of
from projects.paper_claims.settings import Settings
from projects.paper_claims.verdicts import MEASURES, judge

# mmpretrain imports an op that is not compiled here and that nothing needs
warnings.filterwarnings('ignore', message='Fail to import ``MultiScaleDeformableAttention``')

DRAWS_PER_SEED = 1000  # more than --draws, so that no two seeds share a draw
COST_OF_MEASURING = 20  # in training steps


@dataclass(frozen=True)
class Run:
    """A pre-training, a fine-tuning, or the measurement of a frozen network.

    Attributes:
        kind: 'pretrain', 'finetune' or 'measure'.
        name: Name of the recipe (for 'pretrain') or of the network.
        seed: Seed of the pre-training.
        draw: Draw of the labels, from 0 for each seed; for 'finetune' only.
    """

    kind: str
    name: str
    seed: int
    draw: int | None = None

    def __str__(self) -> str:
        return f'{self.kind} {self.name}, seed {self.seed}' + ('' if self.draw is None else f', draw {self.draw}')


@dataclass(frozen=True)
class Experiment:
    """All runs with given settings. A run's key covers its config and seed, and those of the runs it depends on.

    Attributes:
        settings: Sizes and lengths.
        root: Folder of the results.
        data_root: Folder of the digits.
    """

    settings: Settings
    root: Path
    data_root: Path

    @property
    def store(self) -> Store:
        """Results of finished runs."""
        return Store(self.root)

    def plan(self, networks: Iterable[str]) -> list[Run]:
        """Return all runs that these networks need, seed by seed, each after the runs it depends on."""
        runs: dict[Run, None] = {}
        for seed in range(self.settings.seeds):
            for network in networks:
                self._add_pretraining(Run('pretrain', recipe_of(network), seed), runs)
            for network in networks:
                runs[Run('measure', network, seed)] = None
                runs |= {Run('finetune', network, seed, draw): None for draw in range(self.settings.draws)}
        return list(runs)

    def _add_pretraining(self, run: Run, runs: dict[Run, None]) -> None:
        for earlier in self.dependencies(run):
            self._add_pretraining(earlier, runs)
        runs[run] = None

    def dependencies(self, run: Run) -> list[Run]:
        """Return the runs that must be finished before."""
        networks = RECIPES[run.name].teachers if run.kind == 'pretrain' else (run.name,)
        return [Run('pretrain', recipe_of(network), run.seed) for network in networks]

    def jobs(self, runs: Iterable[Run]) -> list[Job]:
        """Return the runs as jobs of mkd_plugin's experiment runner."""
        return [
            Job(
                str(run),
                self.key(run),
                partial(self.execute, run),
                tuple(map(self.key, self.dependencies(run))),
                cost=self.steps(run),
                group=run.kind if run.kind != 'pretrain' else run.name,
            )
            for run in runs
        ]

    def steps(self, run: Run) -> int:
        """Return the approximate cost of a run in training steps."""
        if run.kind == 'pretrain':
            return RECIPES[run.name].lengths * self.settings.epochs * self.settings.steps_per_epoch
        return self.settings.finetune_steps if run.kind == 'finetune' else COST_OF_MEASURING

    @cached_property
    def _keys(self) -> dict[Run, str]:
        return {}

    def key(self, run: Run) -> str:
        """Return the key of a run: a digest of the config, with keys instead of paths, and the seed."""
        if run not in self._keys:
            config = self._config(run, lambda network: self._relative(network, run.seed))
            content = dict(version=mkd_plugin.__version__, kind=run.kind, seed=run.seed, draw=run.draw, config=config)
            self._keys[run] = key_of(f'{run.kind}-{run.name}', **content)
        return self._keys[run]

    def _relative(self, network: str, seed: int) -> str:
        recipe = recipe_of(network)
        return f'{self.key(Run("pretrain", recipe, seed))}/{RECIPES[recipe].file(network, self.settings)}'

    def checkpoint(self, network: str, seed: int) -> str:
        """Return the checkpoint file of a network."""
        return str(self.root / self._relative(network, seed))

    def _config(self, run: Run, checkpoint: Checkpoint) -> dict[str, Any]:
        if run.kind == 'pretrain':
            return pretrain_config(run.name, self.settings, checkpoint).to_dict()
        if run.kind == 'finetune':
            return dict(labels=self.settings.labels, **finetune_config(self.settings, checkpoint(run.name)).to_dict())
        return dict(arch=self.settings.arch, checkpoint=checkpoint(run.name))

    def execute(self, run: Run, context: JobContext) -> dict[str, float]:
        """Run to the end, resuming an interrupted pre-training; return scores in per cent (none for a pre-training)."""
        torch.set_num_threads(1)
        if run.kind == 'pretrain':
            return self._pretrain(run, context.work_dir)
        if run.kind == 'finetune':
            return self._finetune(run, context.work_dir)
        return measure(self.checkpoint(run.name, run.seed), self.settings, self.data_root)

    def _pretrain(self, run: Run, folder: Path) -> dict[str, float]:
        cfg = pretrain_config(run.name, self.settings, lambda network: self.checkpoint(network, run.seed))
        cfg.randomness.seed = run.seed
        self._set_paths(cfg, folder)
        Runner.from_cfg(cfg).train()
        return {}

    def _finetune(self, run: Run, folder: Path) -> dict[str, float]:
        assert run.draw is not None
        draw = run.seed * DRAWS_PER_SEED + run.draw
        cfg = finetune_config(self.settings, self.checkpoint(run.name, run.seed))
        cfg.randomness.seed = 10_000 + draw  # different from all pre-training seeds
        annotation = draw_labelled(self.data_root, self.settings.labels, draw)
        cfg.train_dataloader.dataset.ann_file = str(annotation.relative_to(self.data_root))
        self._set_paths(cfg, folder)
        runner = Runner.from_cfg(cfg)
        runner.train()
        return dict(finetuned=float(runner.message_hub.get_scalar('val/accuracy/top1').current()))

    def _set_paths(self, cfg: Config, folder: Path) -> None:
        cfg.resume = True  # from the last checkpoint, if there is one
        cfg.work_dir, cfg.experiment_name, cfg.log_level = str(folder), folder.name, 'ERROR'
        for loader in ('train_dataloader', 'val_dataloader'):
            if cfg.get(loader):
                cfg[loader].dataset.data_root = str(self.data_root)


def collect(experiment: Experiment, claims: Sequence[Claim]) -> dict[str, Any]:
    """Collect the scores of finished runs and judge the claims.

    Raises:
        ValueError: A run is not finished.
    """
    networks = dict.fromkeys(name for claim in claims for name in claim.networks)
    runs, store = experiment.plan(networks), experiment.store
    records = {run: record for run in runs if (record := store.read(experiment.key(run)))}
    missing = [run for run in runs if run not in records]
    if missing:
        raise ValueError(
            f'{len(missing)} jobs are not finished, the first is: {missing[0]}. Run the same command again.'
        )

    def score(measure: str, network: str, seed: int) -> list[float]:
        draws = range(experiment.settings.draws)
        fine_tunings = [Run('finetune', network, seed, draw) for draw in draws]
        found = fine_tunings if measure == 'finetuned' else [Run('measure', network, seed)]
        return [round(records[run].value[measure], 3) for run in found]

    seeds = range(experiment.settings.seeds)
    scores = {
        measure: {name: [score(measure, name, seed) for seed in seeds] for name in networks} for measure in MEASURES
    }
    return dict(
        version=mkd_plugin.__version__,
        settings=asdict(experiment.settings),
        jobs=len(runs),
        worker_minutes=round(sum(record.seconds for record in records.values()) / 60, 1),
        scores=scores,
        claims=[judge(claim, scores) for claim in claims],
    )
