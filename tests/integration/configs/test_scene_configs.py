"""Configs of the scenes of digits: the hosts' own runner trains two steps and validates on a few real scenes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

import mkd_plugin
from mkd_plugin.preflight.config import move_data_root
from mkd_plugin.registry import MODELS
from projects.digit_scenes.writing import write_digit_scenes

PRETRAIN = 'dbot/dbot_digit-scenes'
TASKS = {
    'dbot/finetune/digit_scenes/dbot-ft_digit-scenes': {'accuracy/top1'},
    'dbot/finetune/digit_scenes/dbot-cascade_digit-scenes': {'coco/bbox_mAP', 'coco/segm_mAP'},
    'dbot/finetune/digit_scenes/dbot-upernet_digit-scenes': {'mIoU', 'mAcc'},
}
RECIPES = {
    'dbot/finetune/digit_scenes/dbot-ft_digit-scenes': 'downstream/mmpretrain/vit-digits_ft_digit-scenes',
    'dbot/finetune/digit_scenes/dbot-cascade_digit-scenes': (
        'downstream/mmdet/vit-digits_cascade-mask-rcnn_digit-scenes'
    ),
    'dbot/finetune/digit_scenes/dbot-upernet_digit-scenes': 'downstream/mmseg/vit-digits_upernet_digit-scenes',
}


class Watch(Hook):
    """Record losses, and which parameters had no gradient in any step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.silent: set[str] = set()

    def before_train(self, runner):
        for name, parameter in runner.model.named_parameters():
            if parameter.requires_grad:
                self.silent.add(name)
                parameter.register_post_accumulate_grad_hook(self.listen(name))

    def listen(self, name: str) -> Callable[[torch.Tensor], None]:
        return lambda parameter: self.silent.discard(name) if parameter.grad.any() else None

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(outputs['loss'].item())


@pytest.fixture(scope='module')
def scenes(tmp_path_factory) -> Path:
    return write_digit_scenes(tmp_path_factory.mktemp('data') / 'scenes', train=8, val=2)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory) -> Path:
    """A pre-training checkpoint with weights that no initialisation draws."""
    model = MODELS.build(mkd_plugin.get_config(PRETRAIN).model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.05)
    path = tmp_path_factory.mktemp('checkpoint') / 'stage_2.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=dict(epoch=2)), path)
    return path


@pytest.fixture
def read(scenes, tmp_path, one_thread) -> Callable[[str], Config]:
    """A config on the few scenes, with batches of two."""

    def build(name: str) -> Config:
        cfg = mkd_plugin.get_config(name)
        move_data_root(cfg, str(scenes))
        cfg.data_root = str(scenes)
        cfg.train_dataloader.batch_size = 2
        cfg.work_dir, cfg.log_level = str(tmp_path), 'ERROR'
        # drop path would leave the gradient of a whole block empty for so few images
        cfg.model.backbone.drop_path_rate = 0.0
        return cfg

    return build


def train(cfg: Config) -> tuple[Runner, Watch]:
    runner, watch = Runner.from_cfg(cfg), Watch()
    runner.register_hook(watch)
    runner.train()
    return runner, watch


@pytest.mark.parametrize('name', TASKS)
def test_finetuning__starts_from_the_checkpoint_trains_and_is_scored(name, read, checkpoint):
    cfg = read(name)
    cfg.train_dataloader.dataset.indices = 8
    cfg.param_scheduler, cfg.train_cfg = [], dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2)
    cfg.model.backbone.init_cfg.checkpoint = str(checkpoint)
    runner, watch = train(cfg)
    assert len(watch.losses) == 2 and all(map(math.isfinite, watch.losses))
    assert not [name for name in watch.silent if not name.endswith('bias')]  # a key's bias has none, by symmetry
    scores = runner.message_hub.log_scalars
    assert TASKS[name] <= {key.removeprefix('val/') for key in scores}
    stored = torch.load(checkpoint, weights_only=True)['state_dict']['backbone.layers.3.ffn.layers.1.weight']
    trained = runner.model.backbone.layers[3].ffn.layers[1].weight
    assert (trained - stored).abs().max() < 2.5 * cfg.optim_wrapper.optimizer.lr  # two steps of AdamW away from it


def test_pretraining__trains_two_steps_in_two_stages(read):
    cfg = read(PRETRAIN)
    cfg.train_dataloader.batch_size = 8
    cfg.train_cfg.max_epochs, cfg.param_scheduler = 2, []
    _, watch = train(cfg)
    assert len(watch.losses) == 2 and all(map(math.isfinite, watch.losses))
    assert not [name for name in watch.silent if not name.endswith('bias')]
    assert {'stage_0.pth', 'stage_1.pth', 'stage_2.pth'} <= {path.name for path in Path(cfg.work_dir).iterdir()}


@pytest.mark.parametrize('name', TASKS)
def test_network__is_that_of_the_pretraining(name):
    """Everything but the start and the rates is the recipe from scratch."""
    cfg, scratch = mkd_plugin.get_config(name), mkd_plugin.get_config(RECIPES[name])
    pretrained = mkd_plugin.get_config(PRETRAIN).model.backbone
    assert (cfg.model.backbone.arch, cfg.model.backbone.patch_size) == (pretrained.arch, pretrained.patch_size)
    assert cfg.model.backbone.pop('init_cfg').checkpoint == 'work_dirs/dbot_digit-scenes/stage_2.pth'
    for key in cfg:
        if key != 'optim_wrapper':
            assert cfg[key] == scratch[key], key
