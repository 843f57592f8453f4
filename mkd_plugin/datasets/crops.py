"""Crops on their way from the workers to the device, where they are resized.

A worker hands over the 8-bit pixels of its crop, and ``CropPreprocessor`` resizes on the device: a GPU at no cost to the
loading, a CPU with torch's 8-bit kernel, which is faster than Pillow (docs/benchmarks.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import get_worker_info

from mkd_plugin.registry import FUNCTIONS


class Crops(NamedTuple):
    """A batch of crops of different sizes in one tensor, so that one copy brings them to another process or device.

    Sizes and flips are plain numbers: reading them from a GPU would make it wait.

    Attributes:
        pixels: uint8, of one crop after the other, each (h, w, 3).
        shapes: (h, w) of each crop.
        flips: Whether to mirror it.
        size: (height, width) of all of them afterwards.
    """

    pixels: Tensor
    shapes: tuple[tuple[int, int], ...]
    flips: tuple[bool, ...]
    size: tuple[int, int]

    def images(self) -> Tensor:
        """Resized and mirrored: (B, 3, height, width) uint8, on the device of the pixels."""
        height, width = self.size
        images = self.pixels.new_empty(len(self.shapes), 3, height, width)
        parts = torch.split(self.pixels, [3 * h * w for h, w in self.shapes])
        for image, part, (h, w), flip in zip(images, parts, self.shapes, self.flips, strict=True):
            resized = resize_crop(part.view(h, w, 3).permute(2, 0, 1), (height, width))
            image.copy_(resized.flip(-1) if flip else resized)
        return images


def resize_crop(crop: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic with antialiasing, as Pillow does it: along rows, round to 8 bits, along columns, round.

    With it results are at most 2 levels from Pillow's, without up to 12 (tests/unit/datasets/test_crops.py). Pillow 13 takes
    the columns first where a crop is shrunk much more in height: some pixels of such crops differ more.

    Args:
        crop: (3, h, w) uint8.
        size: (height, width) to make of it.

    Returns:
        (3, height, width) uint8.
    """
    if crop.shape[-2:] == size:
        return crop
    if crop.device.type == 'cpu':  # torch's kernel for 8 bits works that way, and exists on CPUs only
        return interpolate(crop.unsqueeze(0), size)[0]
    return resize_in_two_passes(crop, size)


def resize_in_two_passes(crop: Tensor, size: tuple[int, int]) -> Tensor:
    """The same in float32, for devices whose kernels know nothing else."""
    rows = interpolate(crop.unsqueeze(0).float(), (crop.shape[-2], size[1])).round_().clamp_(0, 255)
    return interpolate(rows, size).round_().clamp_(0, 255).to(torch.uint8)[0]


def interpolate(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(1, 3, h, w) → (1, 3, height, width) of the same type."""
    return F.interpolate(image, size, mode='bicubic', antialias=True)


@FUNCTIONS.register_module()  # type: ignore[untyped-decorator]
def collate_crops(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What ``PackInputs`` made of crops of ``CropForDevice`` → a batch for ``CropPreprocessor``.

    Returns:
        ``inputs``, the :class:`Crops`, and ``data_samples``, a list.

    Raises:
        ValueError: The pipeline has no ``CropForDevice``.
    """
    crops, marks = [sample['inputs'] for sample in samples], [sample['data_samples'] for sample in samples]
    sizes = {mark.get('img_shape') for mark in marks}
    if not all(isinstance(crop, Tensor) and crop.dim() == 3 and len(crop) == 3 for crop in crops) or len(sizes) != 1:
        raise ValueError(
            "collate_crops: the samples are no crops of one size. It belongs to a pipeline of 'mkd_plugin.CropForDevice' and "
            "'PackInputs', with 'mkd_plugin.CropPreprocessor'; for whole images use collate_fn=dict(type='default_collate')."
        )
    shapes = tuple((crop.shape[1], crop.shape[2]) for crop in crops)
    total = sum(crop.numel() for crop in crops)
    pixels = torch.empty(total, dtype=torch.uint8)
    if get_worker_info() is not None:  # where the main process can read it, or it would be copied once more
        pixels = pixels.share_memory_()  # type: ignore[no-untyped-call]
    for part, crop in zip(torch.split(pixels, [crop.numel() for crop in crops]), crops, strict=True):
        part.view(crop.shape[1], crop.shape[2], 3).copy_(crop.permute(1, 2, 0))
    flips = tuple(bool(mark.get('flip', False)) for mark in marks)
    return {'inputs': Crops(pixels, shapes, flips, sizes.pop()), 'data_samples': marks}
