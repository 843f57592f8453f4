"""Bicubic resizing in Pillow's two antialiased passes: rows, rounded to 8 bits, then columns.

Results are within 2 levels of Pillow's; a single pass would be off by up to 12 (tests/unit/datasets/test_resize.py).
Pillow 13 starts with the columns if a crop shrinks much more in height: some pixels of such crops differ more.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PARTS = 4  # a batch is resized in this many parts, because the largest crop determines the size of all others


def resize_crop(crop: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (3, h, w) uint8 on a CPU by torch's 8-bit kernel, which works in these passes."""
    if crop.shape[-2:] == size:
        return crop
    return F.interpolate(crop.unsqueeze(0), size, mode='bicubic', antialias=True)[0]


def resize_batch(
    pixels: Tensor, table_B4: Tensor, largest: tuple[int, int], size: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """Resize and mirror crops of different sizes by two batched matrix products, without reading anything back.

    The number of kernels does not depend on the batch. For devices without an 8-bit kernel.

    Args:
        pixels: uint8, one crop after the other, each (h, w, 3).
        table_B4: For each crop the number of pixels before it, height, width, and whether to mirror it.
        largest: The largest height and the largest width.
        size: (height, width) of the results.
        dtype: Type of the products: within 1 level of ``resize_crop`` in float32, within 2 in float16.

    Returns:
        (B, 3, height, width) uint8.
    """
    _, height_B, width_B, flip_B = table_B4.unbind(1)
    columns_BCX = bicubic_weights(width_B, largest[1], size[1], flip_B).to(dtype)
    rows_BYR = bicubic_weights(height_B, largest[0], size[0]).mT.to(dtype)
    parts = []
    for table, columns, rows in zip(*(x.chunk(PARTS) for x in (table_B4, columns_BCX, rows_BYR)), strict=True):
        crops_B3RC = pad_crops(pixels, table, largest).to(dtype, memory_format=torch.contiguous_format)
        across_BNX = (crops_B3RC.flatten(1, 2) @ columns).round_().clamp_(0, 255)
        resized_B3YX = rows.unsqueeze(1) @ across_BNX.unflatten(1, (3, largest[0]))
        parts.append(resized_B3YX.round_().clamp_(0, 255).to(torch.uint8))
    return torch.cat(parts)


def pad_crops(pixels: Tensor, table_B4: Tensor, largest: tuple[int, int]) -> Tensor:
    """Return (B, 3, R, C) uint8; what lies outside of a crop are other pixels."""
    start_B, _, width_B, _ = table_B4.unbind(1)
    row_R, column_C = (torch.arange(n, device=pixels.device, dtype=table_B4.dtype) for n in largest)
    index_BRC = start_B[:, None, None] + row_R[:, None] * width_B[:, None, None] + column_C
    pixels_N3 = pixels.view(-1, 3)
    padded = pixels_N3.index_select(0, index_BRC.clamp_(max=len(pixels_N3) - 1).flatten())
    return padded.view(*index_BRC.shape, 3).permute(0, 3, 1, 2)


def bicubic_weights(length_B: Tensor, longest: int, out: int, flip_B: Tensor | None = None) -> Tensor:
    """Compute the share of each input pixel in each output pixel, (B, longest, out) float32; a flip reverses the outputs.

    Keys' cubic kernel with a = −1/2, widened where the image shrinks, as Pillow's; weights outside of the image are zero.
    """
    position_1O = torch.arange(out, device=length_B.device).unsqueeze(0)
    if flip_B is not None:
        position_1O = torch.where(flip_B[:, None] > 0, out - 1 - position_1O, position_1O)
    scale_B1 = (length_B / out).unsqueeze(1)
    centre_B1O = ((position_1O + 0.5) * scale_B1).unsqueeze(1)
    pixel_I1 = torch.arange(longest, device=length_B.device).unsqueeze(1)
    x = ((pixel_I1 + 0.5 - centre_B1O) / scale_B1.clamp(min=1).unsqueeze(1)).abs_()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    weights = weights * (pixel_I1 < length_B[:, None, None])
    return weights / weights.sum(1, keepdim=True)
