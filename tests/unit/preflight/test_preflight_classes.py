"""Heads and data of a config must have the same number of classes."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

from mkd_plugin import get_config
from mkd_plugin.preflight.checks import check_classes
from mkd_plugin.preflight.config import load_config

CASCADE = 'downstream/mmdet/vit-digits_cascade-mask-rcnn_digit-scenes'
UPERNET = 'downstream/mmseg/vit-digits_upernet_digit-scenes'


@pytest.mark.parametrize('name', [CASCADE, UPERNET, 'dbot/finetune/digits/dbot-ft_digits', 'dbot/dbot_digits'])
def test_check_classes__lets_the_shipped_configs_through(name):
    check_classes(get_config(name))


def test_check_classes__a_detectors_head_of_another_count():
    cfg = get_config(CASCADE)
    cfg.model.roi_head.bbox_head[1].num_classes = 80
    with pytest.raises(
        ValueError, match=r'^model\.roi_head\.bbox_head\.1\.num_classes=80: but .* 10 classes, 0, 1, 2, …'
    ):
        check_classes(cfg)


def test_check_classes__data_without_names_have_those_of_their_class():
    """The likeliest mistake: a CocoDataset of one's own without metainfo, which then looks for COCO's 80 names."""
    cfg = get_config(CASCADE)
    cfg.val_dataloader.dataset.metainfo = None
    with pytest.raises(
        ValueError, match=r'num_classes=10.*CocoDataset of val_dataloader has 80 classes, person, .*metainfo='
    ):
        check_classes(cfg)


def test_check_classes__a_segmentors_wrapped_data():
    cfg = get_config(UPERNET)
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=cfg.train_dataloader.dataset)
    check_classes(cfg)
    cfg.train_dataloader.dataset.dataset.metainfo.classes = tuple('0123456789')
    with pytest.raises(
        ValueError, match=r'decode_head\.num_classes=11, model\.auxiliary_head\.num_classes=11: but .* 10'
    ):
        check_classes(cfg)


def test_check_classes__what_is_not_known_is_let_through():
    dataset = dict(type='BaseSegDataset', data_root='somewhere')
    cfg = Config(dict(model=dict(decode_head=dict(num_classes=7)), train_dataloader=dict(dataset=dataset)))
    check_classes(Config(dict(cfg, default_scope='mmseg')))
    check_classes(Config(dict(model=dict(rpn_head=dict(num_classes=1)), train_dataloader=dict(dataset=dataset))))


def test_load_config__refuses_before_anything_is_built():
    config = Path(__file__).resolve().parents[3] / 'configs' / f'{UPERNET}.py'
    with pytest.raises(ValueError, match=r'model\.decode_head\.num_classes=150: but the BaseSegDataset'):
        load_config(str(config), options={'model.decode_head.num_classes': 150})
