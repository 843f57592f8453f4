"""The batch finder, with real allocations that fail, and advice for other batches than the recipe's."""

from __future__ import annotations

import pytest
from mmengine.config import Config

from mkd_plugin.preflight.batch import find_batch, largest_batch, rate_advice
from mkd_plugin.preflight.config import load_config
from mkd_plugin.preflight.plan import Batch


@pytest.mark.parametrize('fits', [0, 1, 2, 3, 17, 63, 64, 100, 511, 512, 4000])
@pytest.mark.parametrize('most', [1, 7, 512])
def test_largest_batch__to_within_a_sixteenth(fits, most):
    tried = []

    def does(images):
        tried.append(images)
        return images <= fits

    found, right = largest_batch(does, most), min(fits, most)
    assert right - max(1, right // 16) < found <= right
    assert max(tried) <= most and len(tried) == len(set(tried)) <= 16


@pytest.fixture(scope='module')
def digits() -> Config:
    """The smallest recipe, as if its batch were 512."""
    options = {'auto_scale_lr.base_batch_size': 512, 'model.backbone.arch': dict(width=32, depth=2, num_heads=2)}
    return load_config('dbot/dbot_digits', options=options)


def test_find_batch__survives_running_out_of_memory(digits):
    """Allocations fail in the processes that try, for want of memory."""
    said = []
    found = find_batch(digits, processes=2, limit=24, say=said.append)
    assert 1 < found < 256
    answers = dict(line.split(' images: ') for line in said if ' images: ' in line)
    assert answers[str(found)] == 'fit'
    above = [int(images) for images, answer in answers.items() if answer == 'do not fit']
    assert found < min(above) <= found + max(1, found // 16)
    assert said[-2] == f'largest batch: {found} images in 0.02 GiB'
    at_once, accumulated = 2 ** (found.bit_length() - 1), 256 // 2 ** (found.bit_length() - 1)
    assert said[-1] == (
        f'for 512 images an update on 2 processes: --cfg-options train_dataloader.batch_size={at_once} '
        f'optim_wrapper.accumulative_counts={accumulated}, rate 0.001'
    )


def test_find_batch__not_even_one_image(digits):
    with pytest.raises(ValueError, match='Not even one image fits in 0.00 GiB. Choose a smaller network'):
        find_batch(digits, processes=1, limit=1, say=lambda line: None)


def test_find_batch__another_failure_is_told(digits):
    cfg = Config(digits.to_dict())
    cfg.model.masking.ratio = 1.5
    with pytest.raises(ValueError, match=r'A step of 1 images fails: ratio=1.5'):
        find_batch(cfg, processes=1, limit=0, say=lambda line: None)


def test_rate_advice__root_for_adam_and_proportion_for_sgd():
    large = Batch(images=512, accumulation=1, processes=32, base=4096, scaled=False)
    assert rate_advice(large, 2.4e-3, 'AdamW') == (
        '4 × the batch: optim_wrapper.optimizer.lr=0.0048 (by the root of it, as AdamW needs); the same epochs have 1 / 4 of '
        'the updates: train longer'
    )
    assert 'lr=0.0096 (in proportion to it, as SGD needs)' in str(rate_advice(large, 2.4e-3, 'SGD'))
    small = Batch(images=64, accumulation=1, processes=1, base=256, scaled=False)
    text = '0.25 × the batch: optim_wrapper.optimizer.lr=0.0005 (by the root of it, as AdamW needs)'
    assert rate_advice(small, 1e-3, 'AdamW') == text


@pytest.mark.parametrize('batch', [Batch(512, 1, 8, 4096, False), Batch(1, 1, 1, None, False), Batch(1, 1, 1, 8, True)])
def test_rate_advice__none_where_the_rate_fits(batch):
    assert rate_advice(batch, 1e-3, 'AdamW') is None
