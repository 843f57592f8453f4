"""A scaled gradient that overflows is ordinary under loss scaling; only losses and weights that are no numbers stop a run."""

from __future__ import annotations

import math

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim.optimizer import amp_optimizer_wrapper

SCALE = 2.0**127  # times a gradient of more than 2: beyond float32, as 2 ** 16 times one of 1 is beyond float16


class Scale(Hook):
    """Gives the wrapper the loss scaling that it has on a GPU, and keeps the scale after every step."""

    priority = 'VERY_HIGH'

    def before_train(self, runner):
        runner.optim_wrapper.loss_scaler = torch.amp.GradScaler('cpu', init_scale=SCALE)
        self.scales: list[float] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.scales.append(runner.optim_wrapper.loss_scaler.get_scale())


@pytest.fixture
def amp(monkeypatch, tiny_run, tmp_path):
    """A tiny run in mixed precision with dynamic loss scaling, which mmengine has on accelerators only."""
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    cfg = tiny_run(tmp_path, 'iterations', interval=1)
    cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype='bfloat16', loss_scale='dynamic')
    return cfg


@pytest.mark.filterwarnings('ignore:.*GradScaler:Warning')
def test_finite_loss__a_scaled_gradient_that_overflows_is_skipped_and_the_run_goes_on(amp, train, tmp_path):
    watch = Scale()
    train(amp, watch)
    halved = [after < before for before, after in zip([SCALE, *watch.scales], watch.scales, strict=False)]
    assert halved[0] and not halved[-1]  # overflows at first; in the end the weights are trained
    last = torch.load(next(tmp_path.glob('stage_*.pth')), weights_only=True)['state_dict']
    assert all(torch.isfinite(value).all() for value in last.values() if value.is_floating_point())


@pytest.mark.filterwarnings('ignore:.*GradScaler:Warning')
def test_finite_loss__a_loss_that_overflows_stops_the_run_under_loss_scaling_too(amp, train):
    def overflow(runner, outputs):
        outputs['loss'] = outputs['loss'] * math.inf

    with pytest.raises(FloatingPointError, match='The loss of step 3 is inf'):
        train(amp, Scale(), at=(3, overflow))
