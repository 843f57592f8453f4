"""The ViT as a backbone of mmdet's detectors and mmseg's segmentors (shape legend: ``mkd_plugin/structures.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mkd_plugin.checkpoint.resize import resize_positions
from mkd_plugin.dense.attention import DenseBlock
from mkd_plugin.models.vit import VisionTransformer
from mkd_plugin.registry import MODELS


@MODELS.register_module()
class DenseViT(VisionTransformer):
    """Maps of patch tokens after chosen blocks, of images of any height and width.

    Images are padded with zeros, right and below, to whole patches; the fixed or learned table of positions is resized to
    the image's grid (antialiased bicubic, float32, as timm's ``dynamic_img_size``). The maps have no final norm and no cls,
    as in dBOT's, BEiT's and ViTDet's detectors. Takes the options of :class:`VisionTransformer`, positions being trained by
    default; ``img_size`` is the size that the tables of positions are for, and to which a checkpoint's are resized.

    Args:
        position: As there.
        out_indices: Blocks whose output is given, from 0, ascending. The last must be the last block: blocks behind it
            would never get a gradient.
        window_size: Attend within windows of this side, patches, as in ViTDet; there are no prefix tokens then. None: every
            block attends to all tokens.
        global_blocks: With windows, the blocks that attend to all tokens all the same; None for the last of each quarter.

    Attributes:
        windows: Side of each block's windows, None where it attends to all tokens.

    Raises:
        ValueError: ``out_indices`` or ``global_blocks`` are no such blocks; an option that a dense backbone cannot have.
    """

    block_class = DenseBlock

    def __init__(
        self,
        *,
        position: str = 'learned',
        out_indices: Sequence[int] = (3, 5, 7, 11),
        window_size: int | None = None,
        global_blocks: Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(position=position, **options)
        self.out_indices = check_outputs(out_indices, self.arch.depth)
        self.windows = windows_of_blocks(self.arch.depth, window_size, global_blocks)
        self._refuse_what_nothing_reads(window_size is not None)
        del self.ln1
        if window_size is not None:
            self.cls_token = None  # type: ignore[assignment]
            self.num_prefix = 0

    def _refuse_what_nothing_reads(self, windowed: bool) -> None:
        if self.proj is not None:
            raise ValueError('DenseViT(projection=…): the maps are not projected. Leave it out.')
        if self.relative_position == 'shared':
            raise ValueError(
                "DenseViT(relative_position='shared'): every block has its own bias here. Use 'per_block': a checkpoint's "
                'shared one is given to each block.'
            )
        if windowed and self.num_prefix != 1:
            raise ValueError(
                'DenseViT(window_size=…): a window holds patches only, so a distillation token or registers would have no '
                'part in attention. Leave window_size or them out.'
            )

    def embed_plane(self, images_BCHW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens that enter the first block, (B, P + h · w, D), and the grid (h, w) of the patches among them."""
        size = self.patch_size
        height, width = images_BCHW.shape[-2:]
        padded = F.pad(images_BCHW, (0, -width % size, 0, -height % size))
        grid = padded.shape[-2] // size, padded.shape[-1] // size
        tokens_BND = self.patch_embed(padded)
        if self.pos_embed is not None:
            tokens_BND = tokens_BND + resize_positions(self.pos_embed[:, self.num_placed :], self.grid, grid, 0)
        if self.num_prefix:
            tokens_BND = torch.cat([self._prefix().expand(len(images_BCHW), -1, -1), tokens_BND], dim=1)
        return self.pre_norm(tokens_BND), grid

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """One map (B, D, h, w) per entry of ``out_indices``: h, w are the image's height and width in patches, rounded up."""
        x_BND, grid = self.embed_plane(images_BCHW)
        maps = []
        for index, (block, window) in enumerate(zip(self.layers, self.windows, strict=True)):
            x_BND = block(x_BND, grid, window)
            if index in self.out_indices:
                maps.append(x_BND[:, self.num_prefix :].transpose(1, 2).unflatten(2, grid).contiguous())
        return tuple(maps)


def check_outputs(out_indices: Sequence[int], depth: int) -> tuple[int, ...]:
    """The blocks whose output is wanted, checked.

    Raises:
        ValueError: They are not ascending, or the last is not the last block.
    """
    wanted = tuple(out_indices)
    ascending = all(first < second for first, second in zip((-1, *wanted), wanted, strict=False))
    if not wanted or not ascending or wanted[-1] != depth - 1:
        raise ValueError(
            f'out_indices={wanted}: blocks are counted from 0, ascending, and the last of {depth} must be among them (those '
            f'behind it would never get a gradient), for example {quarters(depth)}.'
        )
    return wanted


def windows_of_blocks(depth: int, window_size: int | None, global_blocks: Sequence[int] | None) -> list[int | None]:
    """Side of each block's windows, None for all tokens.

    Raises:
        ValueError: The side is not positive; a global block is not there; there are global blocks without windows.
    """
    if window_size is None:
        if global_blocks is not None:
            raise ValueError(f'global_blocks={tuple(global_blocks)} without window_size: every block is global then.')
        return [None] * depth
    chosen = quarters(depth) if global_blocks is None else tuple(global_blocks)
    if window_size < 1 or not set(chosen) <= set(range(depth)):
        raise ValueError(
            f'window_size={window_size}, global_blocks={chosen}: the side of a window is in patches, at least 1, and blocks '
            f'are counted from 0 to {depth - 1}.'
        )
    return [None if index in chosen else window_size for index in range(depth)]


def quarters(depth: int) -> tuple[int, ...]:
    """The last block of each quarter, from 0."""
    return tuple(sorted({depth * part // 4 - 1 for part in range(1, 5)} - {-1}))
