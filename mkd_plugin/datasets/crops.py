"""Random crops that are resized and mirrored on the device.

The way of an image: ``CropForDevice`` cuts the crop, ``FlipOnDevice`` adds the flip to its order, ``PackCrops`` packs both,
``collate_crops`` joins the crops of a batch in the worker, and ``CropPreprocessor`` executes the orders on the device. A GPU
resizes at no cost to loading; on a CPU torch's 8-bit kernel is faster than Pillow (docs/benchmarks.md).

``CropForDevice`` and ``FlipOnDevice`` draw the same random numbers from numpy's generator as the hosts' transforms, so that
replacing one by the other keeps boxes and flips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.transforms import RandomFlip
from mmpretrain.datasets import PackInputs, RandomResizedCrop
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from mkd_plugin.registry import FUNCTIONS, TRANSFORMS


@dataclass(frozen=True)
class CropOrder:
    """What the device is to do with a crop."""

    size: tuple[int, int]  #: (height, width) to resize it to
    flip: bool = False  #: Whether to mirror it afterwards


@dataclass(frozen=True)
class Crop:
    """The ``inputs`` of one sample: the crop's pixels, (h, w, 3) uint8, and its order."""

    pixels: NDArray[np.uint8]
    order: CropOrder


class Crops(NamedTuple):
    """A batch of crops of different sizes in one tensor, copied to another process or device at once.

    Shapes and flips are plain numbers, because reading them from a GPU would make the host wait.
    """

    pixels: Tensor  #: uint8, one crop after the other, each (h, w, 3)
    shapes: tuple[tuple[int, int], ...]  #: (h, w) of each crop
    flips: tuple[bool, ...]  #: Whether to mirror it
    size: tuple[int, int]  #: (height, width) of all of them after resizing

    def images(self) -> Tensor:
        """Resize and mirror: (B, 3, height, width) uint8 on the device of the pixels."""
        images = self.pixels.new_empty(len(self.shapes), 3, *self.size)
        parts = torch.split(self.pixels, [3 * h * w for h, w in self.shapes])
        for image, part, (h, w), flip in zip(images, parts, self.shapes, self.flips, strict=True):
            resized = resize_crop(part.view(h, w, 3).permute(2, 0, 1), self.size)
            image.copy_(resized.flip(-1) if flip else resized)
        return images


@TRANSFORMS.register_module()
class CropForDevice(RandomResizedCrop):
    """``RandomResizedCrop`` that leaves the bicubic resizing to ``CropPreprocessor``.

    ``scale`` is the side of the images in pixels, or (height, width); the other options are those of the parent. A crop of
    more than ``largest`` pixels is resized here, with the same result: a batch of crops of 12-megapixel photographs would
    fill the memory. Raises ValueError if a number is out of its range.
    """

    def __init__(
        self,
        *,
        scale: int | Sequence[int],
        crop_ratio_range: tuple[float, float] = (0.08, 1.0),
        aspect_ratio_range: tuple[float, float] = (3 / 4, 4 / 3),
        max_attempts: int = 10,
        largest: int = 512 * 512,
    ) -> None:
        sides = (scale, scale) if isinstance(scale, int) else tuple(scale)
        if len(sides) != 2 or min(sides) < 1:
            raise ValueError(f'scale={scale}: give the side of the images, or (height, width), in pixels.')
        if not 0 < crop_ratio_range[0] <= crop_ratio_range[1] <= 1:
            raise ValueError(f'crop_ratio_range={crop_ratio_range}: it must be (least, most) within (0, 1].')
        if largest < 0:
            raise ValueError(f'largest={largest}: give 0 (resize every crop in the worker) or more pixels.')
        super().__init__(
            scale=sides,
            crop_ratio_range=crop_ratio_range,
            aspect_ratio_range=aspect_ratio_range,
            max_attempts=max_attempts,
        )
        self.largest = largest

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Replace ``img`` by the crop, (h, w, 3) uint8, update ``img_shape``, and add ``crop_order``."""
        top, left, height, width = self.rand_crop_params(results['img'])
        crop = np.ascontiguousarray(results['img'][top : top + height, left : left + width])  # releases the image
        size = (int(self.scale[0]), int(self.scale[1]))
        if height * width > self.largest:
            resized = resize_crop(torch.from_numpy(crop).permute(2, 0, 1), size)
            crop = np.ascontiguousarray(resized.permute(1, 2, 0).numpy())
        results.update(img=crop, img_shape=crop.shape[:2], crop_order=CropOrder(size))
        return results


@TRANSFORMS.register_module()
class FlipOnDevice(RandomFlip):
    """Horizontal ``RandomFlip``, with the probability ``prob``, that leaves the mirroring to ``CropPreprocessor``.

    Raises ValueError if ``prob`` is no probability; in the pipeline, if there is no ``CropForDevice`` before it.
    """

    def __init__(self, *, prob: float = 0.5) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f'prob={prob}: it must lie in [0, 1].')
        super().__init__(prob=float(prob))

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Draw the flip and add it to ``crop_order``."""
        order = order_of(results, 'FlipOnDevice')
        if self._choose_direction() is not None:
            results['crop_order'] = replace(order, flip=not order.flip)
        return results


@TRANSFORMS.register_module()
class PackCrops(PackInputs):
    """mmpretrain's ``PackInputs``, with its options, for a crop of ``CropForDevice``: ``inputs`` is a :class:`Crop`."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Return ``inputs``, the crop with its order, and ``data_samples``."""
        order, pixels = order_of(results, 'PackCrops'), results['img']
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f'PackCrops: the crop is {pixels.dtype} of shape {pixels.shape}, not (h, w, 3) uint8.')
        packed: dict[str, Any] = super().transform({key: value for key, value in results.items() if key != 'img'})
        return {**packed, 'inputs': Crop(np.ascontiguousarray(pixels), order)}


def order_of(results: Mapping[str, Any], step: str) -> CropOrder:
    """The crop's order. Raises ValueError if no ``CropForDevice`` came before this step of the pipeline."""
    order = results.get('crop_order')
    if not isinstance(order, CropOrder):
        raise ValueError(f"{step} needs dict(type='mkd_plugin.CropForDevice', scale=…) before it in the pipeline.")
    return order


@FUNCTIONS.register_module()  # type: ignore[untyped-decorator]
def collate_crops(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join the samples of ``PackCrops`` to a batch for ``CropPreprocessor``: ``inputs``, the :class:`Crops`, and
    ``data_samples``.

    Raises ValueError if a sample is no crop, or their orders differ in size.
    """
    crops = [sample['inputs'] for sample in samples]
    sizes = {crop.order.size for crop in crops if isinstance(crop, Crop)}
    if not all(isinstance(crop, Crop) for crop in crops) or len(sizes) != 1:
        raise ValueError(
            'collate_crops: the samples are no crops of one size. It needs a pipeline with '
            "dict(type='mkd_plugin.CropForDevice', scale=…) that ends with dict(type='mkd_plugin.PackCrops') instead of "
            "PackInputs, and 'mkd_plugin.CropPreprocessor'. For whole images use collate_fn=dict(type='default_collate')."
        )
    pixels = torch.empty(sum(crop.pixels.size for crop in crops), dtype=torch.uint8)
    if get_worker_info() is not None:  # allocate where the main process can read it, to save a copy
        pixels = pixels.share_memory_()  # type: ignore[no-untyped-call]
    for part, crop in zip(torch.split(pixels, [crop.pixels.size for crop in crops]), crops, strict=True):
        part.copy_(torch.from_numpy(crop.pixels).flatten())
    shapes = tuple((crop.pixels.shape[0], crop.pixels.shape[1]) for crop in crops)
    flips = tuple(crop.order.flip for crop in crops)
    return {'inputs': Crops(pixels, shapes, flips, sizes.pop()), 'data_samples': [s['data_samples'] for s in samples]}


def resize_crop(crop: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (3, h, w) uint8 bicubically in Pillow's two antialiased passes: rows, rounded to 8 bits, then columns.

    Results are within 2 levels of Pillow's; a single pass would be off by up to 12 (tests/unit/datasets/test_crops.py).
    Pillow 13 starts with the columns if a crop shrinks much more in height: some pixels of such crops differ more.
    """
    if crop.shape[-2:] == size:
        return crop
    if crop.device.type == 'cpu':  # torch's 8-bit kernel works in these passes, and exists for CPUs only
        return interpolate(crop.unsqueeze(0), size)[0]
    return resize_in_two_passes(crop, size)


def resize_in_two_passes(crop: Tensor, size: tuple[int, int]) -> Tensor:
    """The same in float32, for devices without an 8-bit kernel."""
    rows = interpolate(crop.unsqueeze(0).float(), (crop.shape[-2], size[1])).round_().clamp_(0, 255)
    return interpolate(rows, size).round_().clamp_(0, 255).to(torch.uint8)[0]


def interpolate(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(1, 3, h, w) → (1, 3, height, width) of the same type."""
    return F.interpolate(image, size, mode='bicubic', antialias=True)
