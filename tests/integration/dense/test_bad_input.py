"""What detectors and segmentors of the hosts do on our backbone with data that are not as they should be.

Their own data sets and pipelines read files that were written wrong on purpose; then one training step is taken. Each case
is a finite loss with a gradient (which may be zero) at every parameter, or an error whose message says what is wrong.
"""

from __future__ import annotations

import copy
import json
import shutil
from importlib.metadata import distributions

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope
from PIL import Image

from mkd_cli import train
from mkd_plugin import get_config

ARCH = dict(width=32, depth=4, num_heads=4)
SIZES = {1: (96, 64), 2: (45, 67), 3: (5, 7)}  # height, width; the patches have 8 pixels
CASCADE = 'downstream/mmdet/vit-digits_cascade-mask-rcnn_digit-scenes'
UPERNET = 'downstream/mmseg/vit-digits_upernet_digit-scenes'


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """A folder with a picture of noise for each of ``SIZES``."""
    folder = tmp_path_factory.mktemp('pictures')
    for number, size in SIZES.items():
        noise = np.random.default_rng(number).integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f'{number}.png')
    return folder


def small(name: str):
    """A config of the digit scenes with a narrow ViT, its pictures taken as they are."""
    cfg = get_config(name)
    cfg.model.backbone.update(arch=ARCH, out_indices=(0, 1, 2, 3))
    dataset = cfg.train_dataloader.dataset
    dataset.pipeline = [entry for entry in dataset.pipeline if entry.type not in ('RandomResize', 'RandomCrop')]
    dataset.pop('indices')
    return cfg


@pytest.fixture(scope='module')
def detector():
    """Cascade Mask R-CNN and its config."""
    init_default_scope('mmdet')
    cfg = small(CASCADE)
    cfg.model.neck[0].in_channels, cfg.model.neck[1].in_channels = 32, [32] * 4
    torch.manual_seed(0)
    return MODELS.build(cfg.model).train(), cfg


@pytest.fixture(scope='module')
def segmentor():
    """UperNet and its config."""
    init_default_scope('mmseg')
    cfg = small(UPERNET)
    cfg.model.neck.in_channels = cfg.model.auxiliary_head.in_channels = 32
    cfg.model.decode_head.in_channels = [32] * 4
    torch.manual_seed(0)
    return MODELS.build(cfg.model).train(), cfg


def step(model, samples) -> dict[str, float]:
    """One backward pass; the losses."""
    model.zero_grad(set_to_none=True)
    loss, told = model.parse_losses(model(**model.data_preprocessor(pseudo_collate(samples), True), mode='loss'))
    loss.backward()
    assert torch.isfinite(loss)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    assert model.backbone.patch_embed.projection.weight.grad.any()
    return {name: float(value.detach()) for name, value in told.items()}


def outline(x: float, y: float, width: float, height: float) -> list[list[float]]:
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def scenes(detector, pictures, *objects, **options):
    """mmdet's CocoDataset on a file that has these objects, each an annotation that is changed from a good one."""
    init_default_scope('mmdet')
    good = dict(image_id=1, category_id=1, iscrowd=0, bbox=[10, 10, 20, 20])
    annotations = []
    for number, changes in enumerate(objects, 1):
        entry = {**good, 'id': number, **changes}
        entry.setdefault('segmentation', outline(*entry['bbox']))
        annotations.append({'area': entry['bbox'][2] * entry['bbox'][3], **entry})
    images = [dict(id=n, file_name=f'{n}.png', height=h, width=w) for n, (h, w) in SIZES.items()]
    categories = [dict(id=number + 1, name=str(number)) for number in range(10)]
    path = pictures / 'annotations.json'
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    cfg = copy.deepcopy(detector[1].train_dataloader.dataset)
    cfg.update(data_root='', ann_file=str(path), data_prefix=dict(img=str(pictures)), **options)
    return DATASETS.build(cfg)


def test_detector__a_batch_with_and_without_objects(detector, pictures):
    """Of two sizes, neither a whole number of patches; and one without any object at all."""
    model, _ = detector
    data = scenes(detector, pictures, dict(), dict(bbox=[30, 40, 25, 25]))
    losses = step(model, [data[0], data[1]])
    assert losses['s0.loss_mask'] > 0 and losses['s0.loss_bbox'] > 0
    losses = step(model, [data[1], data[1]])
    assert (
        losses['s0.loss_mask'] == losses['s0.loss_bbox'] == losses['loss_rpn_bbox'] == 0 and losses['s0.loss_cls'] > 0
    )


def test_detector__no_objects_with_the_heads_of_the_recipe_for_coco(detector, pictures):
    """Convolutions with a norm in the box heads, a box for every class, GIoU on decoded boxes: 0 without any box."""
    cfg = copy.deepcopy(detector[1].model)
    heads = get_config('downstream/mmdet/vit-base-p16_cascade-mask-rcnn_1x_coco').model.roi_head.bbox_head
    for head in heads:
        head.update(in_channels=32, conv_out_channels=32, fc_out_channels=32, num_classes=10, norm_cfg=dict(type='BN'))
    cfg.roi_head.bbox_head = heads
    data = scenes(detector, pictures)
    losses = step(MODELS.build(cfg).train(), [data[0], data[1]])
    assert [losses[f's{stage}.loss_bbox'] for stage in range(3)] == [0, 0, 0]


@pytest.mark.parametrize(
    'changes, kept',
    [
        (dict(bbox=[10, 10, 0, 20]), 0),  # no width
        (dict(bbox=[10, 10, -5, 20]), 0),
        (dict(bbox=[200, 200, 20, 20]), 0),  # outside
        (dict(category_id=77), 0),  # of no class
        (dict(iscrowd=1, segmentation=dict(size=[96, 64], counts=[0, 96 * 64])), 1),  # nothing is learned from a crowd
        (dict(bbox=[-10, -10, 30, 30]), 1),  # partly outside
        (dict(bbox=[10, 10, 1, 1]), 1),
        (dict(segmentation=[[10, 10, 20, 20]]), 1),  # two points
        (dict(segmentation=[[10, 10, 20, 20, 30, 30]]), 1),  # on a line
    ],
    ids=['flat', 'negative', 'outside', 'class', 'crowd', 'partly', 'tiny', 'points', 'line'],
)
def test_detector__degenerate_objects(detector, pictures, changes, kept):
    """mmdet leaves out what has no area in the picture, and trains on the rest."""
    data = scenes(detector, pictures, changes, dict(image_id=2))
    assert [len(data.get_data_info(index)['instances']) for index in range(2)] == [kept, 1]
    step(detector[0], [data[0], data[1]])


def test_detector__a_picture_smaller_than_a_patch(detector, pictures):
    """It is padded; training wants an anchor inside of it and says so, a test finds what there is."""
    model, _ = detector
    data = scenes(detector, pictures, dict())
    with pytest.raises(ValueError, match='no valid anchor inside the image boundary. Please check the image size'):
        step(model, [data[2]])
    sample = data[2]
    sample['data_samples'].set_metainfo(dict(scale_factor=(1.0, 1.0)))
    with torch.no_grad():
        found = model.eval()(**model.data_preprocessor(pseudo_collate([sample])), mode='predict')[0].pred_instances
    model.train()
    assert torch.isfinite(found.bboxes).all() and found.masks.shape[1:] == (5, 7)


def labelled(segmentor, pictures, labels: dict[int, np.ndarray]):
    """mmseg's BaseSegDataset on these label maps."""
    init_default_scope('mmseg')
    for folder in ('images', 'labels'):
        (pictures / folder).mkdir(exist_ok=True)
    for number, label in labels.items():
        Image.open(pictures / f'{number}.png').save(pictures / 'images' / f'{number}.png')
        Image.fromarray(label.astype(np.uint8)).save(pictures / 'labels' / f'{number}.png')
    cfg = copy.deepcopy(segmentor[1].train_dataloader.dataset)
    cfg.update(data_root=str(pictures), data_prefix=dict(img_path='images', seg_map_path='labels'))
    return DATASETS.build(cfg)


def test_segmentor__sizes_that_are_no_whole_patches(segmentor, pictures):
    """Padded to the batch's size, with labels that are ignored: 5 × 7 pixels are less than a patch."""
    labels = {number: np.random.default_rng(number).integers(0, 11, size) for number, size in SIZES.items()}
    data = labelled(segmentor, pictures, labels)
    losses = step(segmentor[0], [data[index] for index in range(3)])
    assert losses['decode.loss_ce'] > 0 and losses['aux.loss_ce'] > 0


@pytest.mark.skipif(
    bool(list(distributions(name='mmsegmentation'))), reason='mmsegmentation 1.2.2 reads the weight of class 255'
)
def test_segmentor__nothing_but_ignored_labels(segmentor, pictures):
    data = labelled(segmentor, pictures, {number: np.full(size, 255) for number, size in SIZES.items()})
    init_default_scope('mmseg')
    model = segmentor[0]
    model.zero_grad(set_to_none=True)
    batch = model.data_preprocessor(pseudo_collate([data[0], data[1]]), True)
    for sample in batch['data_samples']:
        sample.gt_sem_seg.data.fill_(255)  # the padding, too, which these configs take for background
    loss, told = model.parse_losses(model(**batch, mode='loss'))
    loss.backward()
    assert loss.item() == 0 and all(not parameter.grad.any() for parameter in model.parameters())


def test_segmentor__a_label_that_the_head_does_not_have(segmentor, pictures):
    data = labelled(segmentor, pictures, {number: np.full(size, 12) for number, size in SIZES.items()})
    with pytest.raises(IndexError, match='Target 12 is out of bounds'):
        step(segmentor[0], [data[0], data[1]])


def test_segmentor__predicts_a_picture_smaller_than_a_patch(segmentor, pictures):
    """At the picture's own size: the padding is cut off again."""
    model, _ = segmentor
    data = labelled(segmentor, pictures, {number: np.zeros(size) for number, size in SIZES.items()})
    with torch.no_grad():
        batch = model.eval().data_preprocessor(pseudo_collate([data[2]]), False)
        found = model(**batch, mode='predict')[0].pred_sem_seg.data
    model.train()
    assert found.shape == (1, 5, 7)


def test_train__says_what_is_wrong_with_annotations_before_anything_is_written(pictures, tmp_path, capsys):
    """What was `KeyError: 'mask'` within the first steps, and labels that only the loss refused."""
    annotations = [dict(id=n, image_id=1, category_id=1, bbox=[5, 5, 9, 9], area=81, segmentation=[]) for n in range(7)]
    images = [dict(id=1, file_name='1.png', height=96, width=64)]
    categories = [dict(id=number + 1, name=str(number)) for number in range(10)]
    content = dict(images=images, annotations=annotations, categories=categories)
    (tmp_path / 'empty.json').write_text(json.dumps(content))
    for folder in ('images', 'masks'):
        (tmp_path / folder).mkdir()
    for number, size in SIZES.items():
        shutil.copy(pictures / f'{number}.png', tmp_path / 'images')
        Image.fromarray(np.full(size, 12, np.uint8)).save(tmp_path / 'masks' / f'{number}.png')
    for config, dataset, message in (
        (
            CASCADE,
            dict(ann_file='empty.json', data_prefix=dict(img='images')),
            '7 annotations with an empty segmentation: 0, 1, 2, 3, 4, …',
        ),
        (
            UPERNET,
            dict(data_prefix=dict(img_path='images', seg_map_path='masks')),
            '3 label maps, of 256 looked at, with labels that are',
        ),
    ):
        cfg = get_config(config)
        for loader in ('train_dataloader', 'val_dataloader'):
            cfg[loader].dataset.update(data_root=str(tmp_path), indices=None, **dataset)
        cfg.dump(tmp_path / 'config.py')
        assert train.main([str(tmp_path / 'config.py'), '--work-dir', str(tmp_path / 'run')]) == 2
        said = [line for line in capsys.readouterr().err.splitlines() if 'WARNING' not in line]
        assert message in '\n'.join(said) and said[0].startswith('error: train_dataloader.dataset') and len(said) <= 12
        assert not (tmp_path / 'run').exists()
