"""The ViT as a backbone for mmdet and mmseg (shape legend: ``mkd_plugin/structures.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from mkd_plugin.dense.attention import DenseBlock
from mkd_plugin.models.vit import VisionTransformer
from mkd_plugin.registry import MODELS


@MODELS.register_module()
class DenseViT(VisionTransformer):
    """A ViT that returns maps of patch tokens after chosen blocks, for images of any height and width.

    Images are padded with zeros, right and below, to whole patches. Tables of positions are resized to the image's grid
    (antialiased bicubic in float32, as timm's ``dynamic_img_size``), and rotary positions are computed for it. The maps have
    no final norm and no cls token, as in the detectors of dBOT, BEiT and ViTDet.

    Args:
        position: As for :class:`VisionTransformer`, but trained by default.
        out_indices: Blocks whose outputs are returned, ascending from 0. They must include the last block, because blocks
            after the last output would get no gradient.
        window_size: Side, in patches, of the windows within which blocks attend, as in ViTDet; prefix tokens are dropped.
            None: every block attends to all tokens.
        global_blocks: Blocks that attend to all tokens despite ``window_size``; by default the last of each quarter.
        options: Those of :class:`VisionTransformer`; ``img_size`` is the size that the tables of positions are made for, and
            to which a checkpoint's are resized.

    Attributes:
        windows: Side of each block's windows; None if it attends to all tokens.

    Raises:
        ValueError: ``out_indices`` or ``global_blocks`` do not exist, or an option is impossible in a dense backbone.
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
        self._refuse_unused_options(window_size is not None)
        del self.ln1
        if window_size is not None:
            self.cls_token = None
            self.num_prefix = 0
            if self.rotary is not None:
                self.rotary.num_prefix = 0

    def _refuse_unused_options(self, windowed: bool) -> None:
        if self.proj is not None:
            raise ValueError('DenseViT(projection=…): the maps are not projected. Leave it out.')
        if self.relative_position == 'shared':
            raise ValueError(
                "DenseViT(relative_position='shared'): every block has its own bias here. Use 'per_block': a checkpoint's "
                'shared bias is copied to each block.'
            )
        if windowed and self.num_prefix > 1:
            raise ValueError(
                'DenseViT(window_size=…): a window holds patches only, so a distillation token or registers would have no '
                'part in attention. Leave window_size or them out.'
            )

    def embed_plane(self, images_BCHW: Tensor) -> tuple[Tensor, tuple[int, int], Tensor | None]:
        """Return the input tokens of the first block, (B, P + h · w, D), the grid (h, w) of the patches, and rotary turns."""
        size = self.patch_size
        height, width = images_BCHW.shape[-2:]
        padded = F.pad(images_BCHW, (0, -width % size, 0, -height % size))
        grid = padded.shape[-2] // size, padded.shape[-1] // size
        tokens_BND, turns_1NK = self.embed_at(padded, grid)
        return tokens_BND, grid, turns_1NK

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Return a map (B, D, h, w) per entry of ``out_indices``; h and w are the image's sides in patches, rounded up."""
        x_BND, grid, turns_1NK = self.embed_plane(images_BCHW)
        maps = []
        kept = self.drop_path(x_BND)
        for index, (block, window) in enumerate(zip(self.layers, self.windows, strict=True)):
            x_BND = block(x_BND, grid, window, kept[index], turns_1NK)
            if index in self.out_indices:
                maps.append(x_BND[:, self.num_prefix :].transpose(1, 2).unflatten(2, grid).contiguous())
        return tuple(maps)


def check_outputs(out_indices: Sequence[int], depth: int) -> tuple[int, ...]:
    """Raise ValueError unless ``out_indices`` are ascending and end with the last block."""
    wanted = tuple(out_indices)
    ascending = all(first < second for first, second in zip((-1, *wanted), wanted, strict=False))
    if not wanted or not ascending or wanted[-1] != depth - 1:
        raise ValueError(
            f'out_indices={wanted}: blocks are counted from 0, ascending, and the last of {depth} must be among them (blocks '
            f'after the last output would get no gradient), for example {quarters(depth)}.'
        )
    return wanted


def windows_of_blocks(depth: int, window_size: int | None, global_blocks: Sequence[int] | None) -> list[int | None]:
    """Side of each block's windows; None for all tokens."""
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
