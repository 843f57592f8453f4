"""Annotations of COCO and ADE20K with mistakes: refused by the check before a run, or every sample can be loaded."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.bounds import bounded
from helpers.mutations import CHANGES, TAMPERING, as_json, change, edit, examples
from helpers.tiny_dense import read
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image

from mkd_plugin.preflight.annotations import check_annotations
from mkd_plugin.preflight.checks import check_data

HEIGHT, WIDTH, CLASSES = 24, 32, 10
GOOD = dict(
    images=[dict(id=n, file_name=f'{n}.png', height=HEIGHT, width=WIDTH) for n in (1, 2)],
    annotations=[
        dict(
            id=n,
            image_id=1 + n % 2,
            category_id=1 + n,
            iscrowd=0,
            area=100.0,
            bbox=[4.0, 4.0, 10.0, 10.0],
            segmentation=[[4, 4, 14, 4, 14, 14, 4, 14]],
        )
        for n in range(3)
    ],
    categories=[dict(id=n + 1, name=str(n)) for n in range(CLASSES)],
)


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new('RGB', (WIDTH, HEIGHT), (90, 90, 90)).save(buffer, 'PNG')
    return buffer.getvalue()


def loads_or_is_refused(cfg: Config, size: int, check: Any) -> None:
    """The checks before a run raise a short ValueError, or each sample can be loaded and ``check`` holds for it."""
    init_default_scope(cfg.default_scope)
    try:
        with bounded(size):
            check_data(cfg, ('train_dataloader',))
            check_annotations(cfg, ('train_dataloader',))
    except ValueError as error:
        assert len(str(error).splitlines()) <= 12
        return
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    for index in range(len(dataset)):
        check(dataset[index])


@pytest.fixture(scope='module')
def detection() -> Config:
    pytest.importorskip('mmdet.datasets')
    cfg = read('downstream/mmdet/vit-digits_cascade-mask-rcnn_digit-scenes')
    dataset = cfg.train_dataloader.dataset
    dataset.pipeline = [entry for entry in dataset.pipeline if entry.type != 'RandomResize']
    dataset.pop('indices')
    dataset.serialize_data = False  # it collects garbage each time
    return cfg


def check_boxes(sample: dict[str, Any]) -> None:
    instances = sample['data_samples'].gt_instances
    assert np.isfinite(instances.bboxes.numpy()).all()
    assert ((instances.labels >= 0) & (instances.labels < CLASSES)).all()
    assert instances.masks.height == HEIGHT and instances.masks.width == WIDTH


@given(changes=CHANGES, cut=st.booleans())
@examples(0.7)
def test_checks__coco(detection, tmp_path, changes, cut):
    cfg = copy.deepcopy(detection)
    (tmp_path / 'coco/annotations').mkdir(parents=True, exist_ok=True)
    (tmp_path / 'coco/train').mkdir(exist_ok=True)
    for number in (1, 2):
        (tmp_path / f'coco/train/{number}.png').write_bytes(picture())
    text = as_json(change(GOOD, changes))
    path = tmp_path / 'coco/annotations/train.json'
    path.write_text(text[: len(text) // 2] if cut else text)
    cfg.data_root = cfg.train_dataloader.dataset.data_root = f'{tmp_path}/'
    loads_or_is_refused(cfg, path.stat().st_size, check_boxes)


@pytest.fixture(scope='module')
def segmentation() -> Config:
    pytest.importorskip('mmseg.datasets')
    cfg = read('downstream/mmseg/vit-digits_upernet_digit-scenes')
    dataset = cfg.train_dataloader.dataset
    dataset.pipeline = [entry for entry in dataset.pipeline if not entry.type.startswith('Random')]
    dataset.pop('indices')
    dataset.serialize_data = False  # it collects garbage each time
    return cfg


def check_labels(sample: dict[str, Any]) -> None:
    labels = sample['data_samples'].gt_sem_seg.data
    assert labels.shape == (1, HEIGHT, WIDTH)
    assert ((labels < CLASSES + 1) | (labels == 255)).all()


MASKS = st.fixed_dictionaries(
    dict(
        mode=st.sampled_from(['L', 'P', '1', 'RGB', 'RGBA', 'I;16', 'LA']),
        size=st.sampled_from([(WIDTH, HEIGHT), (HEIGHT, WIDTH), (1, 1), (WIDTH + 1, HEIGHT)]),
        label=st.sampled_from([0, 1, 10, 11, 12, 254, 255]),
        edits=st.one_of(st.none(), st.none(), TAMPERING),
    )
)


@given(mask=MASKS)
@examples(0.7)
def test_checks__ade20k(segmentation, tmp_path, mask):
    cfg = copy.deepcopy(segmentation)
    for folder in ('ade/images/training', 'ade/annotations/training'):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    values = np.full(mask['size'][::-1], mask['label'], dtype=np.uint8)
    image, buffer = Image.fromarray(values), io.BytesIO()
    (image.convert('I').convert('I;16') if mask['mode'] == 'I;16' else image.convert(mask['mode'])).save(buffer, 'PNG')
    for number, content in enumerate([as_labels(), buffer.getvalue()]):
        (tmp_path / f'ade/images/training/{number}.png').write_bytes(picture())
        damaged = edit(content, mask['edits']) if number and mask['edits'] else content
        Path(tmp_path / f'ade/annotations/training/{number}.png').write_bytes(damaged)
    cfg.data_root = cfg.train_dataloader.dataset.data_root = f'{tmp_path}/'
    loads_or_is_refused(cfg, len(buffer.getvalue()), check_labels)


def as_labels() -> bytes:
    """A good mask."""
    buffer = io.BytesIO()
    Image.new('L', (WIDTH, HEIGHT), 3).save(buffer, 'PNG')
    return buffer.getvalue()
