"""RandomResizedCrop and RandomFlip without the work, which is left to the device.

Both draw exactly what the hosts' transforms draw from the same state of numpy's generator: a config that changes from one
to the other sees the same boxes and flips.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmcv.transforms import RandomFlip
from mmpretrain.datasets import RandomResizedCrop

from mkd_plugin.datasets.crops import resize_crop
from mkd_plugin.registry import TRANSFORMS


@TRANSFORMS.register_module()
class CropForDevice(RandomResizedCrop):
    """``RandomResizedCrop`` that leaves the bicubic resizing to ``CropPreprocessor``.

    A crop with more pixels than ``largest`` is resized here, with the same result: the crops of a batch of 12-megapixel
    photographs would fill the memory.

    Args:
        scale: Side of the images, or (height, width).
        crop_ratio_range: The crop's share of the image's area.
        aspect_ratio_range: Its width over its height.
        max_attempts: How often to draw before taking the largest centred crop.
        largest: Number of pixels up to which a crop is handed over.

    Raises:
        ValueError: A number is out of its range.
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
        """``img`` becomes the crop, (3, h, w) uint8; ``img_shape`` what the device will make of it.

        Raises:
            ValueError: The image is mirrored already, which ``CropPreprocessor`` would undo.
        """
        if results.get('flip'):
            raise ValueError(
                "CropForDevice: mirror after cropping, with dict(type='mkd_plugin.FlipOnDevice', prob=0.5)."
            )
        image = results['img']
        top, left, height, width = self.rand_crop_params(image)
        box = np.ascontiguousarray(image[top : top + height, left : left + width])  # lets go of the rest
        crop = torch.from_numpy(box).permute(2, 0, 1)
        size = (int(self.scale[0]), int(self.scale[1]))
        results['img'] = resize_crop(crop, size) if height * width > self.largest else crop
        results['img_shape'] = size
        return results


@TRANSFORMS.register_module()
class FlipOnDevice(RandomFlip):
    """``RandomFlip``, horizontal, that leaves the mirroring to ``CropPreprocessor``.

    Args:
        prob: How often.

    Raises:
        ValueError: It is no probability.
    """

    def __init__(self, *, prob: float = 0.5) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f'prob={prob}: it must lie in [0, 1].')
        super().__init__(prob=float(prob))

    def _flip(self, results: dict[str, Any]) -> None:
        """Nothing: ``flip`` in the results says it."""
