"""Every number of the recipes and ablation rows against docs/papers.yml, which says where each is printed."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from mmengine.config import Config

from mkd_plugin.preflight.plan import stages_asked_for
from mkd_plugin.utils.configs import ablations, config_root, get_ablation, get_config

PAPERS = yaml.safe_load((Path(__file__).parents[3] / 'docs' / 'papers.yml').read_text(encoding='utf-8'))
# no line of their own in a paper: our own configs, the small ones, and variants of a listed one
UNLISTED = (
    *('digit', 'folder', 'shards', '1xb64', '1x800e', 'dbot-sym-abs', 'data-masks', 'dmae-dino', 'dmae-moco'),
    *('unmasked', '/distill-', 'radio_'),
)
METHODS = (
    *('dbot', 'maskdistill', 'dmae', 'hybrid_distill'),
    *('tinymim', 'crossmae', 'caev2', 'gram', 'ijepa', 'data2vec2', 'proteus', 'multi_teacher'),
)


@cache
def built(name: str) -> Config:
    method, _, row = name.partition(':')
    return get_ablation(method, row) if row else get_config(name)


def step(cfg: Config, kind: str) -> Any:
    pipeline = cfg.train_dataloader.dataset.pipeline
    return next(entry for entry in pipeline if entry.type.removeprefix('mkd_plugin.') == kind)


def epochs_of_a_stage(cfg: Config) -> int:
    stages, total = stages_asked_for(cfg), cfg.train_cfg.max_epochs
    lengths = set(stages.lengths(total)) if stages else {total}
    assert len(lengths) == 1
    return lengths.pop()


def least_rate(cfg: Config) -> float:
    decay = cfg.param_scheduler[1]
    ratio = decay.get('eta_min_ratio')
    return decay.eta_min if ratio is None else ratio * cfg.optim_wrapper.optimizer.lr


READERS = {
    'batch': lambda cfg: 8 * cfg.train_dataloader.batch_size,
    'epochs': epochs_of_a_stage,
    'warm_up': lambda cfg: cfg.param_scheduler[0].end,
    'min_lr': least_rate,
    'clip': lambda cfg: cfg.optim_wrapper.clip_grad.max_norm,
    'crop': lambda cfg: step(cfg, 'CropForDevice').crop_ratio_range,
    'jitter': lambda cfg: step(cfg, 'ColorJitter').brightness,
    'erasing': lambda cfg: step(cfg, 'RandomErasing').erase_prob,
}


def read(cfg: Config, key: str) -> Any:
    if key in READERS:
        return READERS[key](cfg)
    found = cfg
    for part in key.split('.'):
        found = found[part]
    return found


@pytest.mark.parametrize('entry', PAPERS['recipes'], ids=lambda entry: f'{entry["config"]}, {entry["source"]}')
def test_recipe__has_the_papers_numbers(entry):
    cfg = built(entry['config'])
    for key, value in entry['values'].items():
        found = read(cfg, key)
        if isinstance(value, float):
            assert found == pytest.approx(value, rel=1e-9, abs=1e-15), key
        else:
            assert (list(found) if isinstance(value, list) else found) == value, key


@pytest.mark.parametrize('method', PAPERS['figures'])
def test_ablation_rows__have_the_papers_figures(method):
    printed = [pair for rows in PAPERS['figures'][method].values() for pair in rows.items()]
    assert len(printed) == len(dict(printed)), 'a row is listed twice'
    assert {name: row['paper'] for name, row in ablations(method).items() if row['paper'] is not None} == dict(printed)


def test_papers__list_every_recipe():
    listed = {entry['config'] for entry in PAPERS['recipes']}
    recipes = [f'{method}/{path.stem}' for method in METHODS for path in (config_root() / method).glob('*.py')]
    shown = {name for name in recipes if not any(word in name for word in UNLISTED)}
    assert sorted(shown - listed) == []


def test_papers__every_method_with_ablations_has_figures():
    assert {path.parent.name for path in config_root().glob('*/ablations.yml')} == {*PAPERS['figures']}
