"""The estimate of a step's memory against what real steps take."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from workload import LiveMemory

from mkd_plugin import get_config
from mkd_plugin.models.protocols import Progress
from mkd_plugin.preflight import memory
from mkd_plugin.preflight.batch import CONTEXT
from mkd_plugin.preflight.checks import without_checkpoints
from mkd_plugin.preflight.memory import memory_free, memory_needed
from mkd_plugin.preflight.plan import build_for_step, memory_of

FACTOR = 1.35  # of the estimate: what kernels and the allocator take besides


@pytest.fixture(autouse=True)
def quiet():
    """mmengine logs a line for every tensor without weight decay."""
    if not MMLogger.check_instance_created('memory'):
        MMLogger.get_instance('memory', log_level='WARNING')


def config_of(name: str, **options) -> Config:
    cfg = get_config(name)
    cfg.optim_wrapper.type = 'OptimWrapper'
    for key in ('dtype', 'loss_scale'):
        cfg.optim_wrapper.pop(key, None)
    cfg.model = without_checkpoints(cfg.model.to_dict())
    cfg.merge_from_dict(options)
    return cfg


def grown_by(cfg: dict, batches: tuple[int, ...], sender) -> None:
    """Send by how many bytes this process has grown after two steps of each batch."""
    torch.set_num_threads(1)
    init_default_scope('mmpretrain')

    def take_steps(model, wrapper, images):
        model.begin_training(Progress(0, 2))
        for _ in range(2):
            loss, _ = model.parse_losses(model.loss(torch.zeros(images, 3, *model.backbone.image_hw)))
            wrapper.update_params(loss)

    take_steps(*build_for_step(config_of('dbot/dbot_digits')), 1)  # loads what torch loads at first use
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model, wrapper = build_for_step(Config(cfg))
    for images in batches:
        take_steps(model, wrapper, images)
        sender.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)


def test_memory_needed__is_what_a_process_grows_by():
    cfg = config_of('dbot/dbot_digits', **{'model.backbone.arch': dict(width=320, depth=10, num_heads=5)})
    batches = (1, 48)
    receiver, sender = CONTEXT.Pipe(duplex=False)
    CONTEXT.set_forkserver_preload(['mkd_plugin.preflight.batch'])
    process = CONTEXT.Process(target=grown_by, args=(cfg.to_dict(), batches, sender))
    process.start()
    init_default_scope('mmpretrain')
    for images in batches:
        kept, saved = memory_needed(cfg, images)
        estimate, measured = sum(kept) + saved, receiver.recv()
        assert estimate / FACTOR <= measured <= estimate * FACTOR, (images, estimate / 2**20, measured / 2**20)
    process.join()


@pytest.mark.parametrize(
    'name', ['dbot/dbot_digits', 'mae/mae_digits', 'dmae/dmae_digits', 'maskdistill/maskdistill_digits']
)
def test_memory_needed__counts_what_a_real_step_keeps(name):
    """The forward pass of real tensors leaves what is saved, and little else; block-wise masks differ in size."""
    init_default_scope('mmpretrain')
    cfg = config_of(name)
    kept, saved = memory_needed(cfg, 8)
    model, wrapper = build_for_step(cfg)
    model.begin_training(Progress(0, 2))
    batch = torch.zeros(8, 3, *model.backbone.image_hw)
    with LiveMemory([*model.parameters(), *model.buffers(), batch]) as live:
        losses = model.loss(batch)
    assert kept == memory_of(model, wrapper.optimizer)
    assert saved == pytest.approx(live.now, rel=0.1) and losses


def test_memory_free__is_less_than_the_machine_has(monkeypatch):
    monkeypatch.setattr(memory, 'get_device', lambda: 'cpu')
    assert 2**26 < memory_free() <= os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')


def test_memory_free__of_a_container(tmp_path, monkeypatch):
    def patched(folder, *parts):
        return tmp_path.joinpath(*parts) if folder == '/sys/fs/cgroup' else Path(folder, *parts)

    monkeypatch.setattr(memory, 'get_device', lambda: 'cpu')
    monkeypatch.setattr(memory, 'Path', patched)
    (tmp_path / 'memory.current').write_text('1000000\n')
    (tmp_path / 'memory.max').write_text('3000000\n')
    assert memory_free() == 2_000_000
    (tmp_path / 'memory.max').write_text('max\n')
    assert memory_free() > 2**26
