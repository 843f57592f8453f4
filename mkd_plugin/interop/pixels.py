"""Bring images of any kind to RGB in [0, 1], (B, 3, H, W)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mkd_plugin.datasets.loading import to_rgb

SHORT_EDGE = 256 / 224  # of an image before the central crop, over the side of the crop; as in evaluation

AnyImages = Tensor | Image.Image | Sequence[Image.Image] | Sequence[Tensor]


def to_rgb_batch(images: AnyImages, image_hw: tuple[int, int]) -> Tensor:
    """Bring images to RGB in [0, 1].

    Args:
        images: A uint8 tensor, or a float tensor of values in [0, 1], (B, 3, H, W) or (3, H, W); a PIL image; or a list of
            such tensors of one size or of PIL images.
        image_hw: Size to which PIL images are brought: the short edge to 256/224 of it, then the central crop.

    Returns:
        (B, 3, H, W) float32, on the tensors' device.

    Raises:
        ValueError: Another type or shape, or floats outside [0, 1].
    """
    if isinstance(images, Image.Image):
        images = [images]
    if not isinstance(images, Tensor):
        parts = [crop_centre(image, image_hw) if isinstance(image, Image.Image) else image for image in images]
        wrong = sorted({type(part).__name__ for part in parts if not isinstance(part, Tensor)})
        if wrong or not parts:
            raise ValueError(f'images: give a tensor, PIL images, or a list of either; got {wrong or "an empty list"}.')
        sizes = sorted({tuple(part.shape) for part in parts})
        if len(sizes) > 1:
            raise ValueError(f'images: tensors of a list need one shape; got {sizes[:4]}.')
        images = torch.stack(parts)
    if images.ndim == 3:
        images = images[None]
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f'images: give RGB of shape (B, 3, H, W) or (3, H, W); got {tuple(images.shape)}.')
    return in_unit_range(images)


def in_unit_range(images_BCHW: Tensor) -> Tensor:
    """Divide bytes by 255; check that floats are in [0, 1]."""
    if images_BCHW.dtype == torch.uint8:
        return images_BCHW.float() / 255
    if not images_BCHW.is_floating_point():
        raise ValueError(f'images: give uint8, or floats in [0, 1]; got {images_BCHW.dtype}.')
    low, high = (value.item() for value in images_BCHW.detach().aminmax())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # resizing by hand overshoots a little
        bytes_given = 'Divide bytes by 255, or pass them as uint8' if high > 2 else 'Do not normalise: the network does'
        raise ValueError(f'images: floats must be in [0, 1]; got values from {low:.3g} to {high:.3g}. {bytes_given}.')
    return images_BCHW.float()


def crop_centre(image: Image.Image, image_hw: tuple[int, int]) -> Tensor:
    """Resize an image's short edge, bicubic, and crop the centre; (3, H, W) uint8."""
    height, width = image_hw
    image = to_rgb(image)
    edge, short = round(max(image_hw) * SHORT_EDGE), min(image.size)
    size = (int(edge * image.width / short), int(edge * image.height / short))
    resized = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    cropped = resized.crop((left, top, left + width, top + height))
    return torch.from_numpy(np.array(cropped)).permute(2, 0, 1)
