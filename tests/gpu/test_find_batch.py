"""The batch finder where memory is a GPU's."""

from __future__ import annotations

import pytest
import torch

from mkd_plugin.preflight.batch import find_batch
from mkd_plugin.preflight.config import load_config

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')]


def test_find_batch__a_step_of_it_fits_and_one_of_a_larger_batch_does_not():
    said: list[str] = []
    cfg = load_config('dbot/dbot_vit-base-p16_8xb512-2x800e_folder')
    found = find_batch(cfg, processes=1, limit=6 * 1024, say=said.append)
    assert 8 < found < 256
    answers = dict(line.split(' images: ') for line in said if ' images: ' in line)
    above = [int(images) for images, answer in answers.items() if answer == 'do not fit']
    assert answers[str(found)] == 'fit' and found < min(above) <= found + max(1, found // 16)
