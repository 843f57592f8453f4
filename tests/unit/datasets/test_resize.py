"""Resizing gives what Pillow and torchvision give, crop by crop on a CPU and as batched products on other devices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as tv
from helpers.launches import count_launches
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.transforms import InterpolationMode

from mkd_plugin.datasets.crops import Crop, CropOrder, Crops, collate_crops
from mkd_plugin.datasets.resize import resize_batch, resize_crop

PHOTOS = load_sample_images().images  # two photographs of 427 × 640
# What "equal" means, in 8-bit levels: at any pixel, and on average. Pillow resizes along rows first; since version 13 along
# columns first where a crop is shrunk much more in height than in width. In such crops a few pixels are further apart.
LARGEST, AVERAGE = 2, 0.006
ANY_ORDER_LARGEST, ANY_ORDER_AVERAGE, ANY_ORDER_SHARE = 16, 0.1, 1e-3


def boxes(count: int) -> list[tuple[int, int, int, int]]:
    """(top, left, height, width): large and small, narrow and flat, of one pixel, and of the size wanted."""
    generator = np.random.default_rng(0)
    found = [(0, 0, 427, 640), (5, 5, 1, 1), (100, 30, 2, 300), (7, 9, 224, 224), (3, 2, 30, 224), (3, 2, 224, 17)]
    while len(found) < count:
        height, width = generator.integers(8, 427), generator.integers(8, 640)
        found.append((generator.integers(427 - height), generator.integers(640 - width), height, width))
    return [tuple(int(number) for number in box) for box in found]


def levels(ours: torch.Tensor, theirs: np.ndarray) -> np.ndarray:
    return np.abs(ours.permute(1, 2, 0).numpy().astype(int) - theirs.astype(int))


def test_resize__is_pillows_within_the_stated_tolerance():
    """Also torchvision's on PIL images, to which every Pillow before 13 gives these passes."""
    apart, anyhow = [], []
    for number, (top, left, height, width) in enumerate(boxes(40)):
        photo = Image.fromarray(PHOTOS[number % 2])
        cut = photo.crop((left, top, left + width, top + height))
        found = resize_crop(torch.from_numpy(np.array(cut)).permute(2, 0, 1), (224, 224))
        rows_first = cut.resize((224, height), Image.Resampling.BICUBIC).resize((224, 224), Image.Resampling.BICUBIC)
        apart.append(levels(found, np.asarray(rows_first)))
        theirs = tv.resized_crop(photo, top, left, height, width, [224, 224], InterpolationMode.BICUBIC)
        anyhow.append(levels(found, np.asarray(theirs)))
    assert np.max(apart) <= LARGEST and np.mean(apart) <= AVERAGE
    assert np.max(anyhow) <= ANY_ORDER_LARGEST and np.mean(anyhow) <= ANY_ORDER_AVERAGE
    assert np.mean(np.array(anyhow) > LARGEST) <= ANY_ORDER_SHARE


def test_resize__one_pass_in_floats_would_not_be():
    """Why there are two: Pillow cuts what overshoots after the first."""
    cut = np.random.default_rng(0).integers(2, size=(150, 300, 3), dtype=np.uint8) * 255
    crop = torch.from_numpy(cut.copy()).permute(2, 0, 1)
    single = torch.nn.functional.interpolate(crop[None].float(), (224, 224), mode='bicubic', antialias=True)[0]
    wanted = Image.fromarray(cut).resize((224, 224), Image.Resampling.BICUBIC)
    assert levels(single.round().clamp(0, 255), np.asarray(wanted)).max() > LARGEST


def crops_of(count: int, scale: int = 1) -> Crops:
    """Crops of the photographs, some of them mirrored."""
    samples = []
    for number, (top, left, height, width) in enumerate(boxes(max(count, 6))[:count]):
        photo = PHOTOS[number % 2][top : top + height : scale, left : left + width : scale]
        crop = Crop(np.array(photo), CropOrder((224, 224), number % 3 == 1))
        samples.append(dict(inputs=crop, data_samples=None))
    return collate_crops(samples)['inputs']


def in_floats(crops: Crops) -> torch.Tensor:
    """The two passes by torch's interpolation in float32, crop by crop."""
    images = []
    for start, height, width, flip in crops.table_B4.tolist():
        crop = crops.pixels[3 * start :][: 3 * height * width].view(height, width, 3).permute(2, 0, 1)[None].float()
        for size in ((height, crops.size[1]), crops.size):
            crop = F.interpolate(crop, size, mode='bicubic', antialias=True).round().clamp(0, 255)
        images.append(crop[0].flip(-1) if flip else crop[0])
    return torch.stack(images)


@pytest.mark.parametrize(('dtype', 'levels_apart'), [(torch.float32, 1), (torch.float16, 2)])
def test_resize_batch__is_what_the_crops_give_one_by_one(dtype, levels_apart):
    crops = crops_of(24)
    batched = resize_batch(crops.pixels, crops.table_B4, crops.largest, crops.size, dtype)
    assert batched.shape == (24, 3, 224, 224) and batched.dtype == torch.uint8
    for wanted, most in ((in_floats(crops), levels_apart), (crops.images(), LARGEST)):
        apart = (batched.float() - wanted.float()).abs()
        assert apart.max() <= most and apart.mean() < 0.1
    of_size_wanted = torch.from_numpy(PHOTOS[1][7:231, 9:233].copy()).permute(2, 0, 1)
    assert torch.equal(batched[3], of_size_wanted)


@pytest.mark.parametrize('count', [5, 96])
def test_resize_batch__launches_do_not_depend_on_the_batch(count):
    crops = crops_of(count, scale=16)
    launches = count_launches(
        lambda: resize_batch(crops.pixels, crops.table_B4, crops.largest, (32, 32), torch.float32)
    )
    assert launches <= 150
