"""Options of memory and precision: a stopped and resumed run ends bit for bit like one that never stopped."""

from __future__ import annotations

import pytest
from helpers.tiny_runs import kill_resume
from mmengine.optim.optimizer import amp_optimizer_wrapper

from mkd_plugin.engine import attention


class Stop(Exception):
    """Ends a run from inside."""


def stop(runner, outputs):
    raise Stop


def test_resume__with_recomputation_precision_and_chosen_kernels(tiny_run, train, tmp_path, monkeypatch):
    """dBOT with drop path over its change of stage, whose second half starts from a checkpoint."""
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)  # mmengine refuses it on a CPU

    def config(name):
        cfg = tiny_run(tmp_path / name)
        for part in (cfg.model.backbone, cfg.model.objectives.feature.head):
            part.activation_checkpointing = 'selective'
        cfg.model.precision = dict(residual='bfloat16', teacher='fp8')
        cfg.custom_hooks = [*cfg.get('custom_hooks', []), dict(type='mkd_plugin.AttentionHook')]
        cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype='bfloat16', loss_scale=dict(enabled=False))
        return cfg

    # the resumed run would choose another kernel if it were to choose again
    times = dict(MATH=1.0, FLASH_ATTENTION=2.0)
    monkeypatch.setattr(attention, 'times_of', lambda *_: times)
    train(config('whole'))
    with pytest.raises(Stop):
        train(config('stopped'), at=(15, stop))
    times['MATH'] = 3.0
    train(config('stopped'))
    assert kill_resume.differences(tmp_path / 'whole', tmp_path / 'stopped') == []
