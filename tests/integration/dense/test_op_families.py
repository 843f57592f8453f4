"""The table of docs/downstream.md: a step of each model's own config calls these ops on a GPU, or is refused before."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers.families import model_config, ops_of_a_step
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mkd_plugin.compat.ops.ext import check_ops
from mkd_plugin.compat.patches import STAND_IN
from mkd_plugin.preflight.rehearsal import rehearse_training

pytest.importorskip('mmcv.ops')
COMPILED = find_spec('mmcv._ext').origin != str(STAND_IN)
PAGE = Path(__file__).parents[3] / 'docs' / 'downstream.md'
ROW = re.compile(r'^\| [^|]+ \| `((?:mmdet|mmseg)::[^`]+)` \| ([^|]+) \|$', re.MULTILINE)
ROWS = dict(ROW.findall(PAGE.read_text(encoding='utf-8')))
QUICK = ('retinanet', 'centernet', 'deformable_detr')
SERVED = {name: set(re.findall(r'`(\w+)`', ops)) for name, ops in ROWS.items() if 'refused' not in ops}
REFUSED = {name: set(re.findall(r'`(\w+)`', ops)) for name, ops in ROWS.items() if 'refused' in ops}


def quick_first(names: dict[str, set[str]]) -> list:
    return [
        name if any(part in name for part in QUICK) else pytest.param(name, marks=pytest.mark.slow) for name in names
    ]


def test_page__has_the_table():
    assert len(SERVED) > 20 and len(REFUSED) >= 3


@pytest.mark.skipif(COMPILED, reason='mmcv has its compiled ops here')
@pytest.mark.parametrize('name', quick_first(SERVED))
def test_family__takes_a_step_with_the_ops_of_the_page(name):
    pytest.importorskip(f'{name.partition("::")[0]}.models')
    called, model = ops_of_a_step(name)
    assert called == SERVED[name]
    check_ops(model)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert len(gradients) > 10 and all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.skipif(COMPILED, reason='mmcv has its compiled ops here')
@pytest.mark.parametrize('name', REFUSED)
def test_family__is_refused_before_training(name):
    """By the rehearsal of ``mkd train``, whose model has no values."""
    host = name.partition('::')[0]
    pytest.importorskip(f'{host}.models')
    _, model = model_config(name)
    cfg = Config(dict(default_scope=host, model=model, optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1))))
    ops = '.*'.join(sorted(REFUSED[name]))
    with DefaultScope.overwrite_default_scope(host), pytest.raises(ValueError, match=rf'model\..* needs .*{ops}'):
        rehearse_training(cfg)
