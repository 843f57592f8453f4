"""Ten steps of each method in float64 give the very losses they gave when they were recorded (relative 1e-9).

A refactoring must not change them. Where a change is meant, run this file as a script to write new ones, and
say why in the commit.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import mkd_plugin
from mkd_plugin.models.protocols import Progress
from mkd_plugin.registry import MODELS

GOLDEN = Path(__file__).with_name('golden_losses.json')
CONFIGS = [
    'dbot/dbot_digits',
    'mae/mae_digits',
    'dmae/dmae_digits',
    'hybrid_distill/hybrid_digits',
    'maskdistill/maskdistill_digits',
    'tinymim/tinymim_digits',
    'crossmae/crossmae_digits',
    'caev2/caev2_digits',
    'gram/gram_digits',
    'ijepa/ijepa_digits',
    'data2vec2/data2vec2_digits',
    'proteus/proteus_digits',
    'multi_teacher/radio_digits',
    'multi_teacher/unic_digits',
    'fd/vqkd_digits',
]


def ten_losses(name: str) -> dict[str, list[float]]:
    """Losses of ten AdamW steps; dBOT starts its second stage after five."""
    torch.manual_seed(0)
    cfg = mkd_plugin.get_config(name)
    cfg.model.backbone.arch = dict(width=32, depth=4, num_heads=4)
    for teacher in cfg.model.teachers.values():
        if 'arch' in teacher:
            teacher.arch = dict(width=32, depth=4, num_heads=4)
    model = MODELS.build({**cfg.model, 'data_preprocessor': cfg.data_preprocessor}).double().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05)
    model.begin_training(Progress(0, 10))
    losses: dict[str, list[float]] = {}
    for step in range(10):
        if step == 5 and 'boot' in model.teachers:
            model.teachers['boot'].promote(model.backbone)
            model.reset_student()
        images = torch.randn(4, 3, 24, 24, dtype=torch.float64)
        terms = {key: value for key, value in model.loss(images).items() if key.startswith('loss_')}
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        for key, value in terms.items():
            losses.setdefault(key, []).append(value.item())
    return losses


@pytest.mark.parametrize('name', CONFIGS)
def test_ten_steps__give_the_golden_losses(name):
    golden = json.loads(GOLDEN.read_text())[name]
    found = ten_losses(name)
    assert found.keys() == golden.keys()
    for key, values in golden.items():
        assert found[key] == pytest.approx(values, rel=1e-9)


if __name__ == '__main__':
    GOLDEN.write_text(json.dumps({name: ten_losses(name) for name in CONFIGS}, indent=1) + '\n')
