"""Options of memory and precision: a stopped and resumed run ends bit for bit like one that never stopped."""

from __future__ import annotations

import pytest
from helpers.tiny_runs import kill_resume
from mmengine.optim.optimizer import amp_optimizer_wrapper


class Stop(Exception):
    """Ends a run from inside."""


def stop(runner, outputs):
    raise Stop


def test_resume__with_recomputation_and_every_precision(tiny_run, train, tmp_path, monkeypatch):
    """dBOT with drop path over its change of stage, whose second half starts from a checkpoint."""

    monkeypatch.setattr(
        amp_optimizer_wrapper, 'is_cuda_available', lambda: True
    )  # mmengine has it on accelerators only

    def config(name):
        cfg = tiny_run(tmp_path / name)
        for part in (cfg.model.backbone, cfg.model.objectives.feature.head):
            part.activation_checkpointing = 'selective'
        cfg.model.precision = dict(residual='bfloat16', teacher='fp8')
        cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype='bfloat16', loss_scale=dict(enabled=False))
        return cfg

    train(config('whole'))
    with pytest.raises(Stop):
        train(config('stopped'), at=(15, stop))
    train(config('stopped'))
    assert kill_resume.differences(tmp_path / 'whole', tmp_path / 'stopped') == []
