"""Every number of the recipes and ablation rows against docs/papers.yml, which says where each is printed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from mmengine.config import Config

from mkd_plugin.preflight.plan import stages_asked_for
from mkd_plugin.utils.configs import ablations, config_root, get_ablation, get_config

PAPERS = yaml.safe_load((Path(__file__).parents[3] / 'docs' / 'papers.yml').read_text(encoding='utf-8'))
METHODS = sorted(path.parent.name for path in config_root().glob('*/ablations.yml'))
RECIPES = sorted(
    path.relative_to(config_root()).with_suffix('').as_posix()
    for path in config_root().rglob('*.py')
    if '_base_' not in path.relative_to(config_root()).parts
)
# recipes without a paper's number: pattern → why
WITHOUT_PAPER = {
    '*/*_digits': 'our own, small enough for a CPU',
    '*_digit-scenes': 'our own, small enough for a CPU',
    '*/finetune/ade20k/*-upernet_*_160k_ade20k-512-ms': 'tests a checkpoint and trains nothing',
    'any_student/*_teacher-dinov3-small_8xb128-100e_in1k': 'our own recipe',
}


def matches(pattern: str) -> list[str]:
    """Names of the recipes, or of the rows of METHOD:PATTERN."""
    method, _, row = pattern.partition(':')
    names = [f'{method}:{name}' for name in ablations(method)] if row else RECIPES
    return [name for name in names if fnmatchcase(name, pattern)]


def entries() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every config of every entry."""
    for entry in PAPERS['recipes']:
        config = entry['config']
        for pattern in config if isinstance(config, list) else [config]:
            names = matches(pattern)
            assert names, f'{entry["source"]}: no config is named {pattern}'
            yield from ((name, entry) for name in names)


ENTRIES = list(entries())


@cache
def built(name: str) -> Config:
    method, _, row = name.partition(':')
    return get_ablation(method, row) if row else get_config(name)


def step(cfg: Config, *kinds: str) -> Any:
    pipeline = cfg.train_dataloader.dataset.pipeline
    return next(entry for entry in pipeline if entry.type.removeprefix('mkd_plugin.') in kinds)


def batch(cfg: Config) -> int:
    gpus = re.search(r'_(\d+)xb\d', Path(cfg.filename).stem)
    images = cfg.train_dataloader.batch_size * cfg.optim_wrapper.get('accumulative_counts', 1)
    return images * (int(gpus[1]) if gpus else 8)


def epochs_of_a_stage(cfg: Config) -> int:
    stages, total = stages_asked_for(cfg), cfg.train_cfg.max_epochs
    lengths = set(stages.lengths(total)) if stages else {total}
    assert len(lengths) == 1
    return lengths.pop()


def least_rate(cfg: Config) -> float:
    decay = cfg.param_scheduler[1]
    ratio = decay.get('eta_min_ratio')
    return decay.eta_min if ratio is None else ratio * cfg.optim_wrapper.optimizer.lr


def last_weight_decay(cfg: Config) -> float:
    last = cfg.param_scheduler[2]
    assert last.param_name == 'weight_decay'
    return last.eta_min_ratio * cfg.optim_wrapper.optimizer.weight_decay


def crop(cfg: Config) -> Any:
    return step(cfg, 'CropForDevice', 'RandomResizedCrop').get('crop_ratio_range', (0.08, 1.0))  # the host's default


def rand_augment(cfg: Config) -> list[float]:
    found = step(cfg, 'RandAugment')
    return [found.magnitude_level, found.magnitude_std]


READERS = {
    'batch': batch,
    'epochs': epochs_of_a_stage,
    'warm_up': lambda cfg: cfg.param_scheduler[0].end,
    'min_lr': least_rate,
    'end_weight_decay': last_weight_decay,
    'clip': lambda cfg: (cfg.optim_wrapper.get('clip_grad') or {}).get('max_norm'),
    'crop': crop,
    'jitter': lambda cfg: step(cfg, 'ColorJitter').brightness,
    'erasing': lambda cfg: step(cfg, 'RandomErasing').erase_prob,
    'randaug': rand_augment,
    'mixup': lambda cfg: follow(cfg, ['model', 'train_cfg', 'augments', 'Mixup', 'alpha']),
    'cutmix': lambda cfg: follow(cfg, ['model', 'train_cfg', 'augments', 'CutMix', 'alpha']),
}


def follow(node: Any, path: list[str]) -> Any:
    """What lies at a path; a part of a list is named by its number or its type, and `*` is all of them."""
    if not path:
        return node
    part, *rest = path
    if part == '*':
        return [follow(entry, rest) for entry in node]
    if isinstance(node, (list, tuple)):
        named = part if part.isdigit() else [entry.type.rpartition('.')[2] for entry in node].index(part)
        return follow(node[int(named)], rest)
    return follow(node[part], rest)


def read(cfg: Config, key: str) -> Any:
    if key in READERS:
        return READERS[key](cfg)
    path = key.split('.')
    return follow(cfg, ['train_dataloader', 'dataset', *path] if path[0] == 'pipeline' else path)


def plain(value: Any) -> Any:
    return [plain(part) for part in value] if isinstance(value, (list, tuple)) else value


def assert_has(cfg: Config, key: str, value: Any) -> None:
    """Compare a value of a config with a paper's."""
    if value is None:
        *above, last = key.split('.')
        found = read(cfg, key) if key in READERS else follow(cfg, above).get(last)
        assert found is None, key
        return
    if isinstance(value, dict):
        assert value['chosen'] in value['sweep'], key
        value = value['chosen']
    found = plain(read(cfg, key))
    if isinstance(value, float):
        assert found == pytest.approx(value, rel=1e-9, abs=1e-15), key
    else:
        assert found == value, key


@pytest.mark.parametrize('name, entry', ENTRIES, ids=[f'{name}, {entry["source"]}' for name, entry in ENTRIES])
def test_recipe__has_the_papers_numbers(name, entry):
    for key, value in entry['values'].items():
        assert_has(built(name), key, value)


@pytest.mark.parametrize('method', PAPERS['figures'])
def test_ablation_rows__have_the_papers_figures(method):
    printed = [pair for rows in PAPERS['figures'][method].values() for pair in rows.items()]
    assert len(printed) == len(dict(printed)), 'a row is listed twice'
    wanted = {name: figures if isinstance(figures, list) else [figures, None] for name, figures in printed}
    found = {name: [row['paper'], row.get('miou')] for name, row in ablations(method).items()}
    assert {name: figures for name, figures in found.items() if figures != [None, None]} == wanted


def test_papers__list_every_recipe_that_is_not_our_own():
    allowed = {name for pattern in WITHOUT_PAPER for name in matches(pattern)}
    assert sorted(set(RECIPES) - {name for name, _ in ENTRIES} - allowed) == []


@pytest.mark.parametrize('pattern', WITHOUT_PAPER)
def test_recipes_without_paper__exist_and_are_not_listed(pattern):
    assert matches(pattern)
    assert {*matches(pattern)}.isdisjoint(name for name, _ in ENTRIES)


def test_papers__say_each_value_of_a_recipe_once():
    said = Counter((name, key) for name, entry in ENTRIES for key in entry['values'])
    assert [pair for pair, times in said.items() if times > 1] == []


def test_papers__every_method_with_ablations_has_figures():
    assert sorted(PAPERS['figures']) == METHODS
