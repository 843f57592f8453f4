"""The pipeline that resizes on the device gives what the hosts' and torchvision's pipelines give, and fits the Runner."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.fileio import BaseStorageBackend
from mmengine.fileio.backends.registry_utils import backends
from mmengine.registry import FUNCTIONS, init_default_scope
from mmpretrain.registry import MODELS, TRANSFORMS
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader
from torchvision.transforms import RandomResizedCrop

from mkd_plugin import get_config
from mkd_plugin.datasets import CropForDevice, FlipOnDevice, ImageFolder, PackCrops
from mkd_plugin.datasets.crops import Crop, CropOrder, Crops, collate_crops
from mkd_plugin.datasets.loading import decode, is_ordinary_jpeg, read_image, to_rgb
from mkd_plugin.models import CropPreprocessor

PHOTOS = load_sample_images().images  # two photographs of 427 × 640
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
# What "equal" means, in 8-bit levels: at any pixel, and on average. Pillow resizes along rows first; since version 13 along
# columns first where a crop is shrunk much more in height than in width. In such crops a few pixels are further apart.
LARGEST, AVERAGE = 2, 0.006
ANY_ORDER_LARGEST, ANY_ORDER_AVERAGE, ANY_ORDER_SHARE = 16, 0.1, 1e-3


def run_pipeline(config: list[dict], path: str, seed: int) -> dict:
    np.random.seed(seed)
    results = dict(img_path=path, sample_idx=seed)
    for transform in config:
        results = TRANSFORMS.build(transform)(results)
    return results


@pytest.fixture(scope='module')
def photos(tmp_path_factory) -> list[str]:
    """JPEGs of different sizes."""
    folder = tmp_path_factory.mktemp('photos')
    sizes = [(500, 375), (375, 500), (640, 427), (90, 300), (224, 224), (30, 20)]
    for number, size in enumerate(sizes):
        Image.fromarray(PHOTOS[number % 2]).resize(size, Image.Resampling.BICUBIC).save(
            folder / f'{number}.jpg', quality=95
        )
    return sorted(str(path) for path in folder.glob('*.jpg'))


HOSTS = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224, crop_ratio_range=(0.2, 1.0), backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackInputs'),
]


@pytest.mark.parametrize('name', ['folder', 'in1k', 'shards'])
@pytest.mark.parametrize('largest', [512 * 512, 0])
def test_config__gives_the_images_of_the_hosts_pipeline(photos, name, largest):
    """Same seeds, same boxes and flips; whether the worker or the preprocessor resizes."""
    cfg = get_config(f'dbot/dbot_vit-base-p16_8xb512-2x800e_{name}')
    init_default_scope('mmpretrain')
    ours = cfg.train_dataloader.dataset.pipeline
    ours[1].largest = largest
    seeds = range(24)
    samples = [run_pipeline(ours, photos[seed % len(photos)], seed) for seed in seeds]
    made = MODELS.build(cfg.data_preprocessor)(FUNCTIONS.get(cfg.train_dataloader.collate_fn.type)(samples))
    theirs = [run_pipeline(HOSTS, photos[seed % len(photos)], seed) for seed in seeds]
    host = MODELS.build(dict(type='SelfSupDataPreprocessor', mean=MEAN, std=STD, to_rgb=True))
    wanted = host(dict(inputs=torch.stack([sample['inputs'] for sample in theirs]), data_samples=None))['inputs']
    difference = (made['inputs'] - wanted).abs() * torch.tensor(STD).view(3, 1, 1)
    assert difference.max() < ANY_ORDER_LARGEST and difference.mean() < ANY_ORDER_AVERAGE
    assert (difference > LARGEST + 1e-3).float().mean() < ANY_ORDER_SHARE
    assert made['inputs'].shape == (24, 3, 224, 224) and made['inputs'].dtype == torch.float32
    flips = [sample['inputs'].order.flip for sample in samples]
    assert flips == [sample['data_samples'].flip for sample in theirs] and 4 < sum(flips) < 20
    assert all(sample['inputs'].pixels.shape[:2] == sample['data_samples'].img_shape for sample in samples)
    assert [sample.img_path for sample in made['data_samples']] == [photos[seed % len(photos)] for seed in seeds]


def test_crop_for_device__draws_as_torchvision_does():
    """Mean and spread of area and shape of 3,000 boxes; the generators differ, so the boxes do."""
    ours, image = CropForDevice(scale=224, crop_ratio_range=(0.2, 1.0)), np.empty((375, 500, 3), np.uint8)
    np.random.seed(0)
    torch.manual_seed(0)
    mine = np.array([ours.rand_crop_params(image) for _ in range(3000)], float)
    tensor = torch.empty(3, 375, 500)
    theirs = np.array([RandomResizedCrop.get_params(tensor, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)], float)
    for statistic in (
        lambda b: b[:, 2] * b[:, 3] / 187500,
        lambda b: np.log(b[:, 3] / b[:, 2]),
        lambda b: b[:, 0] / 375,
    ):
        a, b = statistic(mine), statistic(theirs)
        error = np.hypot(a.std(), b.std()) / 3000**0.5
        assert abs(a.mean() - b.mean()) < 4 * error
        assert a.std() == pytest.approx(b.std(), rel=0.06)


def test_crop_for_device__takes_the_centre_after_max_attempts():
    """The largest crop whose shape is allowed."""
    image = np.empty((60, 200, 3), np.uint8)
    assert CropForDevice(scale=8, max_attempts=0).rand_crop_params(image) == (0, 60, 60, 80)
    assert CropForDevice(scale=8).rand_crop_params(image) != (0, 60, 60, 80)


def test_collate__through_workers_is_what_it_is_without(photos):
    folder = str(photos[0]).rsplit('/', 1)[0]
    pipeline = [
        dict(type='mkd_plugin.LoadAnyImage'),
        dict(type='mkd_plugin.CropForDevice', scale=(24, 32), crop_ratio_range=(1.0, 1.0), largest=200 * 200),
        dict(type='mkd_plugin.FlipOnDevice', prob=1.0),
        dict(type='mkd_plugin.PackCrops'),
    ]
    data = ImageFolder(data_root=folder, pipeline=pipeline)
    here, there = (next(iter(DataLoader(data, batch_size=6, num_workers=n, collate_fn=collate_crops))) for n in (0, 2))
    assert isinstance(there['inputs'], Crops) and there['inputs'].size == (24, 32)
    shapes = [(height, width) for _, height, width, _ in there['inputs'].table_B4.tolist()]
    assert (24, 32) in shapes and (20, 27) in shapes  # resized there, handed over
    assert there['inputs'].pixels.is_shared() and torch.equal(here['inputs'].pixels, there['inputs'].pixels)
    assert torch.equal(here['inputs'].table_B4, there['inputs'].table_B4) and here['inputs'][2:] == there['inputs'][2:]
    images = CropPreprocessor()(there)['inputs']
    assert images.shape == (6, 3, 24, 32)
    upright = there['inputs']._replace(table_B4=there['inputs'].table_B4 * torch.tensor([1, 1, 1, 0])).images()
    assert torch.equal(images, upright.flip(-1).float())


def test_preprocessor__whole_images_go_through_as_in_the_parent():
    images = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    ours = CropPreprocessor(mean=MEAN, std=STD, to_rgb=True)
    theirs = MODELS.build(dict(type='mmpretrain.SelfSupDataPreprocessor', mean=MEAN, std=STD, to_rgb=True))
    for batch in (images, [images, images]):
        mine, wanted = (made(dict(inputs=batch, data_samples=None))['inputs'] for made in (ours, theirs))
        assert type(mine) is type(wanted)
        assert all(torch.equal(a, b) for a, b in zip(mine, wanted, strict=True))


def test_preprocessor__says_what_to_do_about_what_is_no_batch():
    order = CropOrder((4, 5))
    for single in (torch.zeros(3, 4, 5, dtype=torch.uint8), Crop(np.zeros((4, 5, 3), np.uint8), order)):
        with pytest.raises(ValueError, match=r"2 single images.*collate_fn=dict\(type='mkd_plugin.collate_crops'\)"):
            CropPreprocessor()(dict(inputs=[single, single], data_samples=None))


def test_collate__refuses_what_is_no_crop(photos):
    """Whole images, crops that an older config packs with PackInputs, and crops of different sizes."""
    init_default_scope('mmpretrain')
    crop = dict(type='mkd_plugin.CropForDevice', scale=24)
    sizes = [[crop, dict(type='mkd_plugin.PackCrops')], [{**crop, 'scale': 8}, dict(type='mkd_plugin.PackCrops')]]
    for pipelines in ([HOSTS[3:]] * 2, [[crop, HOSTS[3]]] * 2, sizes):
        samples = [run_pipeline([HOSTS[0], *steps], photos[0], 0) for steps in pipelines]
        with pytest.raises(ValueError, match='no crops of one size.*CropForDevice.*PackCrops.*instead of PackInputs'):
            collate_crops(samples)


def test_pipeline__host_transforms_may_stand_on_either_side_of_the_crop(photos):
    """A flip by the host's transform is in the pixels, one by ours in the order, and they add up."""
    init_default_scope('mmpretrain')
    crop = dict(
        type='mkd_plugin.CropForDevice', scale=24, crop_ratio_range=(1.0, 1.0), aspect_ratio_range=(4 / 3, 4 / 3)
    )
    host, ours = dict(type='RandomFlip', prob=1.0), dict(type='mkd_plugin.FlipOnDevice', prob=1.0)
    pack, made = dict(type='mkd_plugin.PackCrops'), []
    for steps in ([crop], [host, crop, ours], [crop, host, ours], [crop, ours, ours]):
        batch = collate_crops([run_pipeline([HOSTS[0], *steps, pack], photos[0], 0)])
        made.append(batch['inputs'].images())
    assert all(torch.equal(images, made[0]) for images in made[1:])


def test_transforms__refuse_nonsense():
    for options, message in (
        (dict(scale=0), 'scale=0'),
        (dict(scale=(1, 2, 3)), 'scale='),
        (dict(scale=8, crop_ratio_range=(0.5, 0.2)), 'crop_ratio_range'),
        (dict(scale=8, largest=-1), 'largest=-1'),
    ):
        with pytest.raises(ValueError, match=message):
            CropForDevice(**options)
    with pytest.raises(ValueError, match='prob=1.5'):
        FlipOnDevice(prob=1.5)
    image = np.zeros((9, 9, 3), np.uint8)
    for step in (FlipOnDevice(), PackCrops()):
        with pytest.raises(ValueError, match=rf"{type(step).__name__} needs dict\(type='mkd_plugin.CropForDevice'"):
            step(dict(img=image))
    with pytest.raises(ValueError, match=r'float32 of shape \(9, 9, 3\), not \(h, w, 3\) uint8'):
        PackCrops()(dict(img=image.astype(np.float32), crop_order=CropOrder((8, 8))))


def jpeg(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, 'JPEG', **options)
    return buffer.getvalue()


def pillow(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(to_rgb(image))


def test_image_folder__finds_the_extensions_and_reads_through_the_backend(tmp_path, monkeypatch):
    class Backend(BaseStorageBackend):
        """Gives one picture for every path, brighter by an option."""

        def __init__(self, level=0):
            self.level = level

        def get(self, path):
            return jpeg(Image.new('RGB', (4, 3), (self.level,) * 3))

        get_text = get

    monkeypatch.setitem(backends, 'picture', Backend)
    for name in ('a.one', 'b.ONE', 'c.png', 'd.txt'):
        (tmp_path / name).touch()
    load = dict(type='mkd_plugin.LoadAnyImage', backend_args=dict(backend='picture', level=90))
    data = ImageFolder(data_root=str(tmp_path), extensions=('.one',), pipeline=[load])
    assert [Path(data[index]['img_path']).name for index in range(len(data))] == ['a.one', 'b.ONE']
    assert (data[1]['img'] == 90).all() and data[1]['img'].shape == (3, 4, 3)
    assert (read_image('x', backend_args=dict(backend='picture', level=30)) == 30).all()


KINDS = [dict(quality=95), dict(quality=30), dict(progressive=True), dict(subsampling=0), dict(keep_rgb=True)]


@pytest.mark.parametrize('options', KINDS, ids=str)
def test_decode__ordinary_jpegs_are_pillows_to_the_bit(options):
    content = jpeg(Image.fromarray(PHOTOS[0]).resize((201, 135)), **options)
    assert is_ordinary_jpeg(content)
    np.testing.assert_array_equal(decode(content), pillow(content))
    np.testing.assert_array_equal(decode(content, order='bgr'), pillow(content)[:, :, ::-1])


@pytest.mark.parametrize('orientation', range(1, 9))
def test_decode__ordinary_jpegs_are_turned_as_pillow_turns_them(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = jpeg(Image.fromarray(PHOTOS[1][:60, :100]), exif=exif)
    assert is_ordinary_jpeg(content)
    np.testing.assert_array_equal(decode(content), pillow(content))


def test_is_ordinary_jpeg__not_what_cv2_reads_otherwise(monkeypatch):
    photo = Image.fromarray(PHOTOS[0]).resize((64, 48))
    whole = jpeg(photo)
    assert is_ordinary_jpeg(whole)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    for content in (
        b'',
        whole[:-100],
        whole + b'\0\0',  # whole for Pillow, and read by it
        jpeg(photo.convert('L')),
        jpeg(photo.convert('CMYK')),
        jpeg(photo, xmp=xmp),
    ):
        assert not is_ordinary_jpeg(content)
    np.testing.assert_array_equal(decode(whole + b'\0\0'), decode(whole))
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 64 * 48 - 1)
    assert not is_ordinary_jpeg(whole)


def test_decode__damaged_jpegs_are_read_or_refused_as_by_pillow():
    """Bytes changed at random: whatever Pillow says holds, and nothing else is raised."""
    from mkd_plugin.datasets.loading import UnreadableImageError

    whole, generator = jpeg(Image.fromarray(PHOTOS[0]).resize((80, 60)), quality=60), np.random.default_rng(0)
    outcomes = set()
    for _ in range(150):
        content = bytearray(whole)
        for place in generator.integers(2, len(whole) - 2, size=3):
            content[place] = generator.integers(256)
        try:
            wanted = pillow(bytes(content))
        except Exception:
            wanted = None
        try:
            found = decode(bytes(content))
        except UnreadableImageError:
            found = None
        outcomes.add((wanted is None, found is None))
        if wanted is not None and found is not None:
            np.testing.assert_array_equal(found, wanted)
    assert outcomes == {(False, False), (True, True)}
