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
from mkd_plugin.reporting.experiment import Job, JobContext
from mkd_plugin.reporting.store import key_of
from projects.paper_claims.bench import Bench
from projects.paper_claims.claims import Claim
from projects.paper_claims.kept import KeptStore
from projects.paper_claims.measures import measure
from projects.paper_claims.recipes import Checkpoint, finetune_config, pretrain_config
from projects.paper_claims.settings import Settings
from projects.paper_claims.verdicts import judge

# mmpretrain imports an op that is not compiled here and that nothing needs
warnings.filterwarnings('ignore', message='Fail to import ``MultiScaleDeformableAttention``')

DRAWS_PER_SEED = 1000  # so that no two seeds share a draw
COST_OF_MEASURING = 20  # in training steps


@dataclass(frozen=True)
class Run:
    """A pre-training, a fine-tuning, or the measurement of a frozen network.

    Attributes:
        kind: 'pretrain', 'finetune' or 'measure'.
        name: Name of the recipe (for 'pretrain') or of the network.
        seed: Seed of the pre-training.
        tuning: Name of the fine-tuning; for 'finetune' only.
        draw: Draw of the labels, from 0 for each seed; for 'finetune' only.
    """

    kind: str
    name: str
    seed: int
    tuning: str | None = None
    draw: int | None = None

    def __str__(self) -> str:
        text = f'{self.kind} {self.name}, seed {self.seed}'
        return text if self.draw is None else f'{text}, {self.tuning}, draw {self.draw}'


@dataclass(frozen=True)
class Experiment:
    """All runs with given settings. A run's key covers its config and seed, and those of the runs it depends on.

    Attributes:
        bench: Images, pre-trainings and claims.
        settings: Sizes and lengths.
        root: Folder of the results.
        data_root: Folder of the images.
        kept: File of all results, by default jobs.jsonl in ``root``; see :class:`KeptStore`.
    """

    bench: Bench
    settings: Settings
    root: Path
    data_root: Path
    kept: Path | None = None

    @cached_property
    def store(self) -> KeptStore:
        """Results of finished runs."""
        return KeptStore(self.root, self.kept or self.root / 'jobs.jsonl')

    def plan(self, networks: Iterable[str]) -> list[Run]:
        """Return all runs that these networks need, seed by seed, each after the runs it depends on.

        A network is measured before the next one is trained: scores are kept when the machine goes, networks are not.
        """
        runs: dict[Run, None] = {}
        for seed in self.seeds:
            for network in networks:
                self._add_pretraining(Run('pretrain', self.bench.recipe_of(network), seed), runs)
                runs[Run('measure', network, seed)] = None
                for tuning in self.settings.finetunings:
                    runs |= dict.fromkeys(self.finetuned(network, seed, tuning))
        return list(runs)

    def needed(self, runs: Sequence[Run]) -> list[Run]:
        """Return these runs without the pre-trainings whose networks are all measured."""
        return self.store.needed(runs, self.key, self.dependencies)

    @property
    def seeds(self) -> range:
        """Seeds of the pre-trainings."""
        return range(self.settings.first_seed, self.settings.first_seed + self.settings.seeds)

    def finetuned(self, network: str, seed: int, tuning: str) -> list[Run]:
        """Return the fine-tunings of a network, one for each draw."""
        return [Run('finetune', network, seed, tuning, draw) for draw in range(self.settings.finetunings[tuning].draws)]

    def _add_pretraining(self, run: Run, runs: dict[Run, None]) -> None:
        for earlier in self.dependencies(run):
            self._add_pretraining(earlier, runs)
        runs[run] = None

    def dependencies(self, run: Run) -> list[Run]:
        """Return the runs that must be finished before."""
        networks = self.bench.recipes[run.name].teachers if run.kind == 'pretrain' else (run.name,)
        return [Run('pretrain', self.bench.recipe_of(network), run.seed) for network in networks]

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
            return self.settings.steps(self.bench.recipes[run.name].lengths)
        return COST_OF_MEASURING if run.tuning is None else self.settings.finetunings[run.tuning].steps

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
        recipe = self.bench.recipe_of(network)
        return f'{self.key(Run("pretrain", recipe, seed))}/{self.bench.recipes[recipe].file(network, self.settings)}'

    def checkpoint(self, network: str, seed: int) -> str:
        """Return the checkpoint file of a network."""
        return str(self.root / self._relative(network, seed))

    def _config(self, run: Run, checkpoint: Checkpoint) -> dict[str, Any]:
        settings, images = self.settings, self.bench.images
        if run.kind == 'pretrain':
            return pretrain_config(self.bench.recipes[run.name], settings, checkpoint, images).to_dict()
        if run.tuning is not None:
            labels = settings.finetunings[run.tuning].labels
            return dict(labels=labels, **finetune_config(settings, run.tuning, checkpoint(run.name), images).to_dict())
        return dict(arch=settings.arch, patch=settings.patch, probed=settings.probed, checkpoint=checkpoint(run.name))

    def execute(self, run: Run, context: JobContext) -> dict[str, float]:
        """Run to the end, resuming an interrupted pre-training; return scores in per cent (none for a pre-training)."""
        torch.set_num_threads(1)
        if run.kind == 'pretrain':
            return self._pretrain(run, context.work_dir)
        if run.kind == 'finetune':
            return self._finetune(run, context.work_dir)
        return measure(self.checkpoint(run.name, run.seed), self.settings, self.bench.images, self.data_root)

    def _pretrain(self, run: Run, folder: Path) -> dict[str, float]:
        recipe, images = self.bench.recipes[run.name], self.bench.images
        cfg = pretrain_config(recipe, self.settings, lambda network: self.checkpoint(network, run.seed), images)
        cfg.randomness.seed = run.seed
        self._set_paths(cfg, folder)
        Runner.from_cfg(cfg).train()
        return {}

    def _finetune(self, run: Run, folder: Path) -> dict[str, float]:
        assert run.draw is not None and run.tuning is not None
        draw = run.seed * DRAWS_PER_SEED + run.draw
        images = self.bench.images
        cfg = finetune_config(self.settings, run.tuning, self.checkpoint(run.name, run.seed), images)
        cfg.randomness.seed = 10_000 + draw  # different from all pre-training seeds
        images.label(cfg, self.data_root, self.settings.finetunings[run.tuning].labels, draw)
        self._set_paths(cfg, folder)
        runner = Runner.from_cfg(cfg)
        runner.train()
        return {'top1': float(runner.message_hub.get_scalar('val/accuracy/top1').current())}

    def _set_paths(self, cfg: Config, folder: Path) -> None:
        cfg.resume = True  # from the last checkpoint, if there is one
        cfg.work_dir, cfg.experiment_name, cfg.log_level = str(folder), folder.name, 'ERROR'
        cfg.default_hooks.progress.enabled = False
        self.bench.images.place(cfg, self.data_root)


def collect(experiment: Experiment, claims: Sequence[Claim]) -> dict[str, Any]:
    """Collect the scores of finished runs and judge the claims. Raises ValueError if a run is not finished."""
    networks = dict.fromkeys(name for claim in claims for name in claim.networks)
    bench, store = experiment.bench, experiment.store
    runs = experiment.plan(networks)
    records = {run: record for run in runs if (record := store.read(experiment.key(run)))}
    missing = [run for run in experiment.needed(runs) if run not in records]
    if missing:
        raise ValueError(
            f'{len(missing)} jobs are not finished, the first is: {missing[0]}. Run the same command again.'
        )

    def score(measure: str, network: str, seed: int) -> list[float]:
        tuned = measure in experiment.settings.finetunings
        found = experiment.finetuned(network, seed, measure) if tuned else [Run('measure', network, seed)]
        return [round(records[run].value['top1' if tuned else measure], 3) for run in found]

    scores = {
        measure: {name: [score(measure, name, seed) for seed in experiment.seeds] for name in networks}
        for measure in (*bench.measures, *bench.watched)
    }
    return dict(
        version=mkd_plugin.__version__,
        settings=asdict(experiment.settings),
        jobs=len(runs),
        worker_minutes=round(sum(store.spent(experiment.key(run)) for run in runs) / 60, 1),
        scores=scores,
        claims=judge(bench, claims, scores),
    )
