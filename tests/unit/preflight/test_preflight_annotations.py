"""Annotations that would end a run or be learned wrongly are refused before the first step, with counts and names."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from mkd_plugin.preflight.annotations import check_annotations
from mkd_plugin.preflight.dry_run import LOADERS

CLASSES = ('cat', 'dog')
NAN, INFINITY = float('nan'), float('inf')


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """The warnings."""
    lines: list[str] = []
    monkeypatch.setattr('mkd_plugin.preflight.annotations.print_log', lambda text, *_, **__: lines.append(text))
    return lines


def coco(
    root: Path, *objects: dict[str, Any], images: Any = None, categories: Any = None, masks: bool = True
) -> Config:
    """A config of one CocoDataset: two images of 40 × 30, and objects that are changed from a good one."""
    (root / 'img/deep').mkdir(parents=True, exist_ok=True)
    for name in ('0.png', 'deep/1.png'):
        Image.new('RGB', (40, 30)).save(root / 'img' / name)
    good = dict(
        image_id=0, category_id=3, iscrowd=0, bbox=[5, 5, 10, 10], area=100, segmentation=[[5, 5, 15, 5, 15, 15]]
    )
    annotations = [
        {key: value for key, value in {**good, 'id': 100 + number, **changes}.items() if value != 'none'}
        for number, changes in enumerate(objects)
    ]
    if images is None:
        images = [dict(id=n, file_name=name, width=40, height=30) for n, name in enumerate(('0.png', 'deep/1.png'))]
    if categories is None:
        categories = [dict(id=3, name='cat'), dict(id=7, name='dog')]
    (root / 'ann.json').write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    pipeline = [dict(type='LoadAnnotations', with_bbox=True, with_mask=masks)]
    dataset = dict(type='CocoDataset', data_root=str(root), ann_file='ann.json', data_prefix=dict(img='img/'))
    dataset.update(metainfo=dict(classes=CLASSES), pipeline=pipeline)
    return Config(dict(default_scope='mmdet', train_dataloader=dict(dataset=dataset)))


def rle(height: int, width: int) -> dict[str, Any]:
    return dict(size=[height, width], counts=[0, height * width])


def test_coco__good_annotations_pass_in_silence(tmp_path, said):
    check_annotations(coco(tmp_path, {}, dict(image_id=1, category_id=7), dict(segmentation=rle(30, 40))), LOADERS)
    check_annotations(coco(tmp_path), LOADERS)
    assert not said


INVALID = 'annotations without a valid id, image_id, category_id, bbox and area: number 1'
NO_OUTLINE = 'annotations whose segmentation is neither polygons near the image nor run lengths'
BAD_OBJECTS = {
    'no bbox': (dict(bbox='none'), INVALID),
    'no category': (dict(category_id='none'), INVALID),
    'no image': (dict(image_id='none'), INVALID),
    'no area': (dict(area='none'), INVALID),
    'no id': (dict(id='none'), INVALID),
    'three numbers': (dict(bbox=[1, 2, 3]), INVALID),
    'text': (dict(bbox=['1', '2', '3', '4']), INVALID),
    'a list as an id': (dict(image_id=[0]), INVALID),
    'a number too large': (dict(bbox=[10**400, 0, 1, 1]), INVALID),
    'NaN': (dict(bbox=[NAN, 5, 10, 10]), 'annotations with NaN or infinity in bbox or area: 101'),
    'infinity': (dict(bbox=[5, 5, INFINITY, 10]), 'annotations with NaN or infinity in bbox or area: 101'),
    'NaN as area': (dict(area=NAN), 'annotations with NaN or infinity in bbox or area: 101'),
    'an empty mask': (dict(segmentation=[]), 'annotations with an empty segmentation: 101'),
    'no mask': (dict(segmentation='none'), 'annotations with an empty segmentation: 101'),
    'a mask of another size': (
        dict(segmentation=rle(40, 30)),
        'annotations with a mask of another size than the image: 101',
    ),
    'a mask without size': (dict(segmentation=dict(counts=[1])), 'a mask of another size than the image: 101'),
    **{
        name: (dict(segmentation=segmentation), f'{NO_OUTLINE}: 101')
        for name, segmentation in {
            'no polygon': [None],
            'a text as a polygon': ['5, 5'],
            'a text as a mask': 'NaN',
            'NaN in a polygon': [[5, 5, 15, NAN, 15, 15]],
            'a text in a polygon': [[5, 5, 15, '5', 15, 15]],
            'a polygon of 10^18 pixels': [[5, 5, 15, 10**18, 15, 15]],
            'runs that are too long': dict(size=[30, 40], counts=[0, 10**9]),
            'runs that are negative': dict(size=[30, 40], counts=[-800, 2000]),
            'no runs': dict(size=[30, 40]),
        }.items()
    },
    'an id twice': (dict(id=100), 'annotations whose id another one has: 100'),
}


@pytest.mark.parametrize('what', BAD_OBJECTS)
def test_coco__objects_that_are_refused(tmp_path, said, what):
    changes, message = BAD_OBJECTS[what]
    with pytest.raises(ValueError, match=f'ann.json: the annotations cannot be trained on.\n  1 .*{message}\nCorrect'):
        check_annotations(coco(tmp_path, {}, changes), LOADERS)
    assert not said


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(bbox=[5, 5, 0, 10]), 'smaller than a pixel, negative or outside of the image'),
        (dict(bbox=[5, 5, -3, 10]), 'smaller than a pixel, negative or outside of the image'),
        (dict(bbox=[40, 5, 10, 10]), 'smaller than a pixel, negative or outside of the image'),
        (dict(area=0), 'smaller than a pixel, negative or outside of the image'),
        (dict(category_id=77), 'of unknown categories'),
        (dict(image_id=9), 'of images that the file does not list'),
    ],
    ids=['flat', 'negative', 'outside', 'no area', 'category', 'image'],
)
def test_coco__objects_that_mmdet_leaves_out_are_counted(tmp_path, said, changes, message):
    """Whether or not they have a mask, which is then not read."""
    check_annotations(coco(tmp_path, {}, *[{**changes, 'segmentation': []}] * 7), LOADERS)
    (line,) = said
    assert f'mmdet leaves out 7 annotations {message}' in line.replace('whose box is ', '')
    assert line.endswith(': 101, 102, 103, 104, 105, …')


def test_coco__masks_are_not_asked_of_those_who_load_none(tmp_path, said):
    check_annotations(coco(tmp_path, dict(segmentation=[]), dict(segmentation=rle(1, 1)), masks=False), LOADERS)
    assert not said


def test_coco__images_that_are_not_what_the_file_says(tmp_path):
    def entry(number: int, name: str, width: int = 40, **changes: Any) -> dict[str, Any]:
        return dict(id=number, file_name=name, width=width, height=30) | changes

    for images, message in (
        (
            [entry(0, '0.png'), *(entry(n, f'{n}.png') for n in range(1, 8))],
            r'7 images that are not in \S+: 1\.png, 2\.png',
        ),
        ([entry(0, '0.png'), entry(1, 'deep/2.png')], r'1 images that are not in \S+: deep/2\.png'),
        ([entry(0, '0.png', width=41)], r'1 images of another size than the file says, of 256 looked at: 0\.png'),
        ([entry(0, '0.png'), entry(0, 'deep/1.png')], r'1 images whose id another one has: deep/1\.png'),
        ([entry(0, '0.png'), entry(1, '0.png', height=0)], '1 images without a valid id, .*: number 1'),
        ([entry(0, '0.png'), dict(id=1)], '1 images without a valid id, .*: number 1'),
        ([entry(0, '0.png'), entry(1, 7)], '1 images without a valid id, .*: number 1'),
        ([entry(0, '0.png'), None], '1 images without a valid id, .*: number 1'),
        ([entry(0, 'deep')], '1 images that cannot be opened, of 256 looked at: deep'),
    ):
        with pytest.raises(ValueError, match=message):
            check_annotations(coco(tmp_path, {}, images=images), LOADERS)


def test_coco__images_that_the_loader_turns_have_their_upright_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    cfg = coco(tmp_path, {}, images=[dict(id=0, file_name='a.jpg', width=40, height=30)])
    Image.new('RGB', (30, 40)).save(tmp_path / 'img/a.jpg', exif=exif)
    check_annotations(cfg, LOADERS)


def test_coco__classes_that_the_file_lacks(tmp_path):
    for categories, lacking in (([dict(id=7, name='dog')], 'cat'), ([], 'cat, dog')):
        with pytest.raises(ValueError, match=rf'classes that no category of the file has .*metainfo.*: {lacking}\n'):
            check_annotations(coco(tmp_path, categories=categories), LOADERS)
    with pytest.raises(ValueError, match='2 categories without an id and a name: number 1, number 2'):
        check_annotations(
            coco(tmp_path, categories=[dict(id=3, name='cat'), dict(id=8), 5, dict(id=7, name='dog')]), LOADERS
        )


@pytest.mark.parametrize(
    'content, message',
    [
        ('', 'is no JSON file'),
        ('[' * 100_000, 'is no JSON file'),
        ('[]', "is not in COCO's format: it has no list images, annotations, categories"),
        ('{"images": [], "annotations": {}}', "is not in COCO's format: it has no list annotations, categories"),
    ],
)
def test_coco__files_that_are_none(tmp_path, content, message):
    cfg = coco(tmp_path)
    (tmp_path / 'ann.json').write_text(content)
    with pytest.raises(ValueError, match=message):
        check_annotations(cfg, LOADERS)


def test_coco__many_mistakes_are_one_short_message(tmp_path):
    objects = [changes for changes, _ in BAD_OBJECTS.values()] * 20
    images = [
        dict(id=0, file_name='0.png', width=9, height=9),
        dict(id=1),
        dict(id=0, file_name='x', width=1, height=1),
    ]
    with pytest.raises(ValueError) as caught:
        check_annotations(coco(tmp_path, {}, *objects, images=images, categories=[1]), LOADERS)
    lines = str(caught.value).splitlines()
    assert 8 < len(lines) <= 12 and all(len(line) < 400 for line in lines)


def test_check__by_the_first_process_only_and_not_of_other_data(tmp_path, monkeypatch):
    cfg = coco(tmp_path, dict(segmentation=[]))
    monkeypatch.setenv('RANK', '1')
    check_annotations(cfg, LOADERS)
    monkeypatch.setenv('RANK', '0')
    for changes in (dict(type='LVISV1Dataset'), dict(ann_file='none.json'), dict(data_root='s3://x')):
        other = copy.deepcopy(cfg)
        other.train_dataloader.dataset.update(changes)
        check_annotations(other, LOADERS)
    wrapped = copy.deepcopy(cfg)
    wrapped.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=cfg.train_dataloader.dataset)
    with pytest.raises(ValueError, match=r'train_dataloader\.dataset\.dataset, .*ann\.json'):
        check_annotations(wrapped, LOADERS)


def label_maps(root: Path, *labels: Any, kind: str = 'BaseSegDataset', **options: Any) -> Config:
    """A config of one data set of mmseg: an image of 40 × 30 for each label map, an array or a number that fills it."""
    for folder in ('img', 'ann'):
        (root / folder).mkdir(exist_ok=True)
    for number, label in enumerate(labels):
        Image.new('RGB', (40, 30)).save(root / f'img/{number}.jpg')
        if label is not None:
            values = np.full((30, 40), label, np.uint8) if isinstance(label, int) else label
            Image.fromarray(values).save(root / f'ann/{number}.png')
    dataset = dict(type=kind, data_root=str(root), data_prefix=dict(img_path='img', seg_map_path='ann'), pipeline=[])
    dataset.update(dict(metainfo=dict(classes=CLASSES)) if kind == 'BaseSegDataset' else {}, **options)
    return Config(dict(default_scope='mmseg', val_dataloader=dict(dataset=dataset)))


def test_label_maps__good_ones_pass(tmp_path):
    check_annotations(label_maps(tmp_path, 0, 1, 255), LOADERS)
    check_annotations(label_maps(tmp_path, 0, 1, 150, kind='ADE20KDataset'), LOADERS)


@pytest.mark.parametrize(
    'label, message',
    [
        (2, r'label maps, of 256 looked at, with labels that are neither 0 … 1 nor 255: \S+/1\.png \(2\)'),
        (np.full((30, 40), 300, np.uint16), r'neither 0 … 1 nor 255: \S+/1\.png \(300\)'),
        (np.zeros((40, 30), np.uint8), r'label maps of another size than the image: \S+/1\.png'),
        (np.zeros((30, 40, 3), np.uint8), r'label maps in colour, without one number for each pixel: \S+/1\.png'),
        (None, r'images or label maps that do not exist: \S+/1\.png'),
    ],
    ids=['label', '16 bits', 'size', 'colour', 'missing'],
)
def test_label_maps__that_are_refused(tmp_path, label, message):
    with pytest.raises(
        ValueError, match=rf'val_dataloader\.dataset: the annotations cannot be trained on\.\n  1 .*{message}'
    ):
        check_annotations(label_maps(tmp_path, 0, label), LOADERS)


def test_label_maps__labels_as_mmseg_converts_them(tmp_path):
    """ADE20K's 0 is ignored and its 151 is no class; a data set with fewer classes ignores the others."""
    with pytest.raises(ValueError, match=r'neither 0 … 149 nor 255: \S+/1\.png \(150\)'):
        check_annotations(label_maps(tmp_path, 150, 151, kind='ADE20KDataset'), LOADERS)
    check_annotations(
        label_maps(tmp_path, 0, 1, 150, kind='ADE20KDataset', metainfo=dict(classes=('wall', 'sky'))), LOADERS
    )


def test_label_maps__that_cannot_be_opened(tmp_path):
    cfg = label_maps(tmp_path, 0, 1)
    (tmp_path / 'ann/0.png').write_bytes(b'no image')
    (tmp_path / 'img/1.jpg').write_bytes(b'')
    with pytest.raises(
        ValueError, match=r'2 images or label maps that cannot be opened: \S+/ann/0\.png, \S+/img/1\.jpg'
    ):
        check_annotations(cfg, LOADERS)
