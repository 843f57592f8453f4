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
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from mmcv.transforms import RandomFlip
from mmpretrain.datasets import PackInputs, RandomResizedCrop
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from mkd_plugin.datasets.resize import resize_batch, resize_crop
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
    """A batch of crops of different sizes in one tensor, copied to another process or device at once."""

    pixels: Tensor  #: uint8, one crop after the other, each (h, w, 3)
    table_B4: Tensor  #: int64: for each crop the number of pixels before it, height, width, and whether to mirror it
    largest: tuple[int, int]  #: The largest height and the largest width; on the host, which would wait for a GPU
    size: tuple[int, int]  #: (height, width) of all of them after resizing

    def images(self) -> Tensor:
        """Resize and mirror: (B, 3, height, width) uint8 on the device of the pixels."""
        if self.pixels.device.type != 'cpu':
            return resize_batch(self.pixels, self.table_B4, self.largest, self.size, torch.float16)
        images = self.pixels.new_empty(len(self.table_B4), 3, *self.size)
        for image, (start, h, w, flip) in zip(images, self.table_B4.tolist(), strict=True):
            crop = self.pixels[3 * start : 3 * (start + h * w)].view(h, w, 3)
            resized = resize_crop(crop.permute(2, 0, 1), self.size)
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
    heights, widths = ([crop.pixels.shape[axis] for crop in crops] for axis in (0, 1))
    areas = [height * width for height, width in zip(heights, widths, strict=True)]
    rows = zip(accumulate(areas, initial=0), heights, widths, (crop.order.flip for crop in crops), strict=False)
    batch = Crops(pixels, torch.tensor(list(rows)), (max(heights), max(widths)), sizes.pop())
    return {'inputs': batch, 'data_samples': [sample['data_samples'] for sample in samples]}
