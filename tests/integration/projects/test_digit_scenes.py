"""Scenes of digits: the same bytes, no scan in both splits, boxes and label maps as the masks say, read by the hosts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.registry import DATASETS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from PIL import Image
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from sklearn.datasets import load_digits

import mkd_plugin
from mkd_cli import make_digit_scenes
from mkd_plugin.datasets.digits import split_scans
from mkd_plugin.reporting.benchmark import Settings, suites
from projects.digit_scenes import writing
from projects.digit_scenes.drawing import MIN_VISIBLE, SIDES, Canvas, Scans, Scene, draw_scene
from projects.digit_scenes.writing import label_map, run_lengths, write_digit_scenes


@pytest.fixture(scope='module')
def root(tmp_path_factory) -> Path:
    return write_digit_scenes(tmp_path_factory.mktemp('data') / 'scenes', seed=3, train=6, val=4)


@pytest.fixture(scope='module')
def scans() -> Scans:
    digits = load_digits()
    return Scans(digits.images / 16, digits.target)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob('*')) if path.is_file()}


def annotated(root: Path, split: str) -> COCO:
    return COCO(str(root / 'coco/annotations' / f'{split}.json'))


def test_write_digit_scenes__same_seed_same_bytes(root, tmp_path):
    again = write_digit_scenes(tmp_path / 'again', seed=3, train=6, val=4)
    assert contents(again) == contents(root)
    other = write_digit_scenes(tmp_path / 'other', seed=4, train=6, val=4)
    assert contents(other)['coco/train/00000.png'] != contents(root)['coco/train/00000.png']


def test_write_digit_scenes__more_scenes_begin_with_the_same(root, tmp_path):
    more = contents(write_digit_scenes(tmp_path / 'more', seed=3, train=8, val=4))
    pictures = {name: data for name, data in contents(root).items() if name.endswith('.png')}
    assert pictures.items() <= more.items()


def test_write_digit_scenes__splits_have_no_scan_in_common(tmp_path, monkeypatch):
    seen: list[set[bytes]] = []

    def spy(scans, rng):
        seen.append({scan.tobytes() for scan in scans.images})
        return draw_scene(scans, rng)

    monkeypatch.setattr(writing, 'draw_scene', spy)
    write_digit_scenes(tmp_path / 'scenes', train=1, val=1)
    train, val = seen
    assert not train & val
    members = split_scans(load_digits().target)
    assert (len(members['train']), len(members['val'])) == (1440, 357)


def test_draw_scene__masks_are_disjoint_and_no_digit_is_nearly_hidden(scans, monkeypatch):
    inks: list[list[int]] = []
    paint = Canvas.paint

    def spy(canvas, *arguments, **options):
        inks.append(canvas.inks)
        return paint(canvas, *arguments, **options)

    monkeypatch.setattr(Canvas, 'paint', spy)
    for seed in range(12):
        scene = draw_scene(scans, np.random.default_rng(seed))
        height, width = scene.image_HW3.shape[:2]
        assert SIDES[0] <= min(height, width) <= max(height, width) <= SIDES[1]
        assert scene.masks_NHW.sum(0).max() == 1 and len(scene.digits) == len(scene.masks_NHW) >= 1
        shares = scene.masks_NHW.sum((1, 2)) / np.array(inks[-1])
        assert shares.min() >= MIN_VISIBLE and shares.max() == 1


def test_canvas__what_lies_on_top_takes_the_pixels_below():
    canvas = Canvas(np.zeros((10, 10, 3)))
    whole, red = np.ones((10, 4)), np.array([1.0, 0.0, 0.0])
    assert canvas.paint(whole, (0, 0), red, digit=True)
    assert not canvas.paint(whole, (0, 0), red, digit=False)  # would hide it all
    assert not canvas.paint(np.ones((10, 3)), (0, 0), red, digit=True)  # would leave a quarter
    assert canvas.paint(np.ones((10, 2)), (0, 2), red / 2, digit=True)
    assert (canvas.owner_HW == np.array([0, 0, 1, 1, -1, -1, -1, -1, -1, -1])).all()
    assert canvas.image_HW3[0, :, 0].tolist() == [1, 1, 0.5, 0.5, 0, 0, 0, 0, 0, 0]
    assert canvas.inks == [40, 20]


def test_annotations__boxes_are_tight_and_label_maps_equal_the_masks(root):
    for split, folder in (('train', 'training'), ('val', 'validation')):
        coco = annotated(root, split)
        for number, image in coco.imgs.items():
            picture = root / 'coco' / split / image['file_name']
            assert Image.open(picture).size == (image['width'], image['height'])
            assert picture.read_bytes() == (root / 'ade/images' / folder / image['file_name']).read_bytes()
            wanted = np.zeros((image['height'], image['width']), dtype=np.uint8)
            for entry in coco.imgToAnns[number]:
                mask = coco.annToMask(entry).astype(bool)
                code = coco_masks.encode(np.asfortranarray(mask))
                assert entry['bbox'] == coco_masks.toBbox(code).tolist() and entry['iscrowd'] == 0
                assert entry['area'] == mask.sum() > 0 and not wanted[mask].any()
                wanted[mask] = int(coco.cats[entry['category_id']]['name']) + 1
            stored = np.asarray(Image.open(root / 'ade/annotations' / folder / image['file_name']))
            assert stored.dtype == np.uint8 and (stored == wanted).all()


def test_crops__are_listed_in_the_order_of_the_annotations(root):
    lines = [line.split() for line in (root / 'crops/train.txt').read_text().splitlines()]
    entries = annotated(root, 'train').dataset['annotations']
    assert [int(digit) for _, digit in lines] == [entry['category_id'] for entry in entries]
    for (name, _), entry in zip(lines, entries, strict=True):
        width, height = Image.open(root / 'crops/train' / name).size
        assert int(name[:5]) == entry['image_id'] and width >= entry['bbox'][2] and height >= entry['bbox'][3]


@pytest.mark.parametrize('mask', [[[0, 1], [1, 1]], [[1, 0], [0, 0]], [[0, 0], [0, 0]], [[1, 1], [1, 1]]])
def test_run_lengths__is_cocos_code(mask):
    mask = np.array(mask, dtype=bool)
    code = dict(size=list(mask.shape), counts=run_lengths(mask))
    assert (coco_masks.decode(coco_masks.frPyObjects(code, 2, 2)) == mask).all()


def test_label_map__is_background_where_no_digit_is():
    masks = np.array([[[1, 0], [0, 0]], [[0, 0], [0, 1]]], dtype=bool)
    assert label_map(Scene(np.zeros((2, 2, 3), np.uint8), [0, 9], masks)).tolist() == [[1, 0], [0, 10]]


def test_write_digit_scenes__refuses_what_is_not_its_own(root, tmp_path):
    with pytest.raises(ValueError, match=r"holds the scenes of .*'seed': 3.*not of .*'seed': 5"):
        write_digit_scenes(root, seed=5, train=6, val=4)
    (tmp_path / 'photo.jpg').write_bytes(b'')
    with pytest.raises(ValueError, match=r'has no scenes\.json'):
        write_digit_scenes(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['photo.jpg']
    with pytest.raises(ValueError, match='val=0'):
        write_digit_scenes(tmp_path / 'new', val=0)


def test_write_digit_scenes__completes_what_is_half_written_and_leaves_what_is_whole(root, tmp_path):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_digit_scenes(tmp_path, seed=3, train=6, val=4, step=stop)
    assert not json.loads((tmp_path / 'scenes.json').read_text())['complete']
    assert contents(write_digit_scenes(tmp_path, seed=3, train=6, val=4)) == contents(root)
    steps = []
    write_digit_scenes(tmp_path, seed=3, train=6, val=4, step=lambda: steps.append(0))
    assert not steps


def test_make_digit_scenes__says_why_it_stopped(tmp_path, capsys):
    assert make_digit_scenes.main([str(tmp_path / 'scenes'), '--train', '2', '--val', '1']) == 0
    assert make_digit_scenes.main([str(tmp_path / 'scenes'), '--train', '3', '--val', '1']) == 2
    assert capsys.readouterr().err.startswith('error: ')


def read_val(root: Path, config: str) -> Any:
    """The data set for validation of a config."""
    cfg = mkd_plugin.get_config(config)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return DATASETS.build(dict(cfg.val_dataloader.dataset, data_root=str(root)))


def test_coco_dataset__reads_and_coco_metric_scores_the_truth_with_one(root):
    from mmdet.evaluation import CocoMetric

    dataset = read_val(root, 'downstream/mmdet/vit-digits_cascade-mask-rcnn_digit-scenes')
    assert len(dataset) == 4 and dataset.metainfo['classes'] == tuple('0123456789')
    coco = annotated(root, 'val')
    metric = CocoMetric(ann_file=str(root / 'coco/annotations/val.json'), metric=['bbox', 'segm'])
    metric.dataset_meta = dataset.metainfo
    for item in dataset:
        sample = item['data_samples']
        truth = sample.gt_instances
        own = coco.imgToAnns[sample.img_id]
        assert truth.labels.tolist() == [entry['category_id'] for entry in own]
        assert truth.masks.masks.sum((1, 2)).tolist() == [entry['area'] for entry in own]
        found = InstanceData(
            bboxes=truth.bboxes.tensor, labels=truth.labels, masks=truth.masks.to_tensor(bool, 'cpu'),
            scores=truth.bboxes.tensor.new_ones(len(own)),
        )  # fmt: skip
        sample.pred_instances = found
        metric.process({}, [sample.to_dict()])
    scores = metric.evaluate(len(dataset))
    assert scores['coco/bbox_mAP'] == scores['coco/segm_mAP'] == 1.0


def test_base_seg_dataset__reads_and_iou_metric_scores_the_truth_with_one(root):
    from mmseg.evaluation import IoUMetric

    dataset = read_val(root, 'downstream/mmseg/vit-digits_upernet_digit-scenes')
    assert len(dataset) == 4 and dataset.metainfo['classes'] == ('background', *'0123456789')
    metric = IoUMetric(iou_metrics=['mIoU'])
    metric.dataset_meta = dataset.metainfo
    for number, item in enumerate(dataset):
        sample = item['data_samples']
        stored = np.asarray(Image.open(root / 'ade/annotations/validation' / f'{number:05d}.png'))
        assert (sample.gt_sem_seg.data[0].numpy() == stored).all()
        sample.pred_sem_seg = PixelData(data=sample.gt_sem_seg.data)
        metric.process({}, [sample.to_dict()])
    scores = metric.evaluate(len(dataset))
    assert scores['mIoU'] == scores['mAcc'] == 100.0


def test_custom_dataset__reads_the_crops(root):
    dataset = read_val(root, 'downstream/mmpretrain/vit-digits_ft_digit-scenes')
    entries = annotated(root, 'val').dataset['annotations']
    assert dataset.get_gt_labels().tolist() == [entry['category_id'] for entry in entries]
    assert dataset[0]['inputs'].shape == (3, 48, 48)


def test_suite__has_the_three_tasks_of_the_checkout():
    suite = Settings(suite='digit-scenes').build()
    assert list(suite.tasks) == ['classification', 'detection', 'segmentation'] and suite.seeds == 3
    assert all(task.config.is_file() and task.scratch.is_file() for task in suite.tasks.values())


def test_suite__needs_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(suites, 'config_root', lambda: tmp_path / 'configs')
    with pytest.raises(ValueError, match='needs a checkout of the repository'):
        Settings(suite='digit-scenes').build()
