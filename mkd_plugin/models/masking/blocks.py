"""Maskings by blocks with the same number of visible patches in every image, for students that compute only those."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mkd_plugin.models.masking.block import DRAWS, check_blocks, draw_blocks
from mkd_plugin.models.masking.random import count_visible
from mkd_plugin.models.protocols import Masking, StudentContext, TeacherFeatures
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import RegionSpec, TokenMask
from mkd_plugin.utils.draws import draw_uniform, to_device

CPU = torch.device('cpu')


class PreferringMasking(Masking):
    """Base of maskings that prefer to show some patches, and show the same number in every image.

    At random among the preferred ones; if these are too few, all of them and others.
    """

    def __init__(self, *, student: StudentContext, ratio: float | None = None, num_visible: int | None = None) -> None:
        super().__init__(student=student)
        self.num_visible, self.grid = count_visible(self.num_patches, ratio, num_visible), student.grid

    def prefer(self, images: int) -> Tensor:
        """Draw the preferred patches of each image, (B, L), True = preferred, on the host."""
        raise NotImplementedError

    def forward(self, images_BCHW: Tensor, teacher_features: TeacherFeatures) -> TokenMask:
        """Draw one mask per image."""
        preferred_BL = self.prefer(len(images_BCHW))
        noise_BL = draw_uniform('choice', preferred_BL.shape, 0, CPU) + preferred_BL.float()
        ids_BV = noise_BL.topk(self.num_visible, dim=1).indices
        return TokenMask.from_kept(to_device(ids_BV, images_BCHW.device), self.num_patches)


@MODELS.register_module()
class ExactBlockMasking(PreferringMasking):
    """BEiT's blocks, completed to the same number of hidden patches in every image (CAE, CAE v2).

    Blocks are drawn as by :class:`BlockMasking`. What they leave to hide is drawn at random; CAE draws further blocks
    until the number fits.

    Args:
        ratio: Share of hidden patches; floor(L · (1 − ratio)) stay visible.
        num_visible: Number of visible patches, instead of ``ratio``.
        min_block: Minimum area of a block, patches.
        min_aspect: Minimum aspect ratio (height divided by width).

    Raises:
        ValueError: Not exactly one of ``ratio`` and ``num_visible`` is given, or a value is out of range.
    """

    def __init__(
        self, *, student: StudentContext, min_block: int = 16, min_aspect: float = 0.3, **options: Any
    ) -> None:
        super().__init__(student=student, **options)
        check_blocks(min_block, min_aspect, self.num_patches - self.num_visible)
        self.min_block, self.min_aspect = min_block, min_aspect

    def prefer(self, images: int) -> Tensor:
        """Prefer patches outside the blocks."""
        hidden_BRC = draw_blocks(
            draw_uniform('mask', (DRAWS, 4, images), 2, CPU),
            self.grid,
            most=self.num_patches - self.num_visible,
            min_block=self.min_block,
            min_aspect=self.min_aspect,
        )
        return ~torch.from_numpy(hidden_BRC).flatten(1)


@MODELS.register_module()
class InverseBlockMasking(PreferringMasking):
    """Shows random squares of patches, and hides the rest (data2vec 2.0).

    Squares are centred at random patches and cut at the border. Patches are then added or taken away at random until
    ``num_visible`` of them are shown.

    Args:
        ratio: Share of hidden patches; floor(L · (1 − ratio)) stay visible.
        num_visible: Number of visible patches, instead of ``ratio``.
        blocks: Number of squares.
        side: Side of a square, patches, an odd number.

    Raises:
        ValueError: Not exactly one of ``ratio`` and ``num_visible`` is given, or a value is out of range.
    """

    def __init__(self, *, student: StudentContext, blocks: int = 5, side: int = 3, **options: Any) -> None:
        super().__init__(student=student, **options)
        if blocks < 1 or side < 1 or side % 2 == 0:
            raise ValueError(f'blocks={blocks}, side={side}: both must be at least 1, and the side must be odd.')
        self.blocks, self.reach = blocks, side // 2

    def prefer(self, images: int) -> Tensor:
        """Prefer patches in the squares."""
        near, shape = [], (images, self.blocks, 1)
        for axis, size in enumerate(self.grid):
            centre_BK1 = (draw_uniform(f'mask {axis}', shape, 0, CPU) * size).long()
            near.append((torch.arange(size) - centre_BK1).abs() <= self.reach)
        return (near[0].unsqueeze(3) & near[1].unsqueeze(2)).any(dim=1).flatten(1)


@MODELS.register_module()
class MultiBlockMasking(Masking):
    """I-JEPA's masking: several target blocks, and as visible context one large block without the targets.

    The sizes of the blocks are drawn once per batch, their places once per image. The region 'targets' has the patches of
    each block, block after block; blocks may overlap. All images show as many patches as the one with the smallest context,
    so that others lose patches at the bottom.

    Args:
        targets: Number of target blocks.
        target_area: Smallest and largest area of a target, share of all patches.
        target_aspect: Smallest and largest aspect ratio of a target, height divided by width.
        context_area: Smallest and largest area of the square context block.
        min_visible: Fewest patches to show; targets of an image stay visible as far as needed.

    Raises:
        ValueError: A value is out of range.
    """

    per_process = True  # the sizes

    def __init__(
        self,
        *,
        student: StudentContext,
        targets: int = 4,
        target_area: tuple[float, float] = (0.15, 0.2),
        target_aspect: tuple[float, float] = (0.75, 1.5),
        context_area: tuple[float, float] = (0.85, 1.0),
        min_visible: int = 11,
    ) -> None:
        super().__init__(student=student)
        pairs = dict(target_area=target_area, context_area=context_area, target_aspect=target_aspect)
        for name, pair in pairs.items():
            most, kind = (1.0, 'shares in (0, 1]') if name.endswith('area') else (float('inf'), 'ratios above 0')
            if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= most:
                raise ValueError(f'{name}={pair}: give two {kind}, the smaller one first.')
        self.grid, self.targets, self.num_visible = student.grid, targets, min_visible
        rows, columns = self._sides(context_area[0], 1.0)
        if not 1 <= min_visible <= rows * columns or targets < 1:
            raise ValueError(
                f'targets={targets}, min_visible={min_visible}: use at least one target, and between 1 and {rows * columns} '
                'visible patches, which the smallest context has.'
            )
        self.target_size, self.context_size = (target_area, target_aspect), (context_area, (1.0, 1.0))

    def regions(self) -> Mapping[str, RegionSpec]:
        """Declare 'targets' beside the usual regions."""
        return {**super().regions(), 'targets': RegionSpec('targets')}

    def forward(self, images_BCHW: Tensor, teacher_features: TeacherFeatures) -> TokenMask:
        """Draw the blocks of all images, on the host, because their size decides the size of all tensors."""
        batch, device = len(images_BCHW), images_BCHW.device
        targets_BKL = self._place(batch, self.targets, *self.target_size)
        context_BL = self._place(batch, 1, *self.context_size).squeeze(1)
        # how many targets, counted from the first, can be cut from the context
        cut_BKL = context_BL.unsqueeze(1) & ~targets_BKL.cummax(dim=1).values
        enough_BK = cut_BKL.sum(dim=2) >= self.num_visible
        shown_BL = torch.cat([context_BL.unsqueeze(1), cut_BKL], dim=1)[torch.arange(batch), enough_BK.sum(dim=1)]
        least = int(shown_BL.sum(dim=1).min())
        ids_BV = (~shown_BL).to(torch.uint8).argsort(dim=1, stable=True)[:, :least]
        ids_BR = targets_BKL.nonzero()[:, 2].view(batch, -1)
        mask = TokenMask.from_kept(to_device(ids_BV, device), self.num_patches)
        return replace(mask, regions={'targets': to_device(ids_BR, device)})

    def _sides(self, share: float, aspect: float) -> list[int]:
        """Height and width of a block of this share of the patches; as in the reference code, less than the grid's."""
        area = int(self.num_patches * share)
        sides = zip(self.grid, ((area * aspect) ** 0.5, (area / aspect) ** 0.5), strict=True)
        return [max(min(round(side), limit - 1), 1) for limit, side in sides]

    def _place(self, batch: int, count: int, areas: tuple[float, float], aspects: tuple[float, float]) -> Tensor:
        """Place blocks of one random size, (B, K, L), True in the block; as in the reference code, not in the last row."""
        share = torch.rand(()).item()
        area, aspect = (low + share * (high - low) for low, high in (areas, aspects))
        inside = []
        for limit, length in zip(self.grid, self._sides(area, aspect), strict=True):
            first_BK1 = (torch.rand(batch, count, 1) * (limit - length)).long()
            places = torch.arange(limit)
            inside.append((places >= first_BK1) & (places < first_BK1 + length))
        return (inside[0].unsqueeze(3) & inside[1].unsqueeze(2)).flatten(2)
