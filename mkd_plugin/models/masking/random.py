"""Random masking, and no masking (plain knowledge distillation)."""

from __future__ import annotations

import torch
from torch import Tensor

from mkd_plugin.models.protocols import Masking, StudentContext, TeacherFeatures
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import TokenMask
from mkd_plugin.utils.draws import draw_uniform


@MODELS.register_module()
class NoMasking(Masking):
    """Hides no patch."""

    def __init__(self, *, student: StudentContext) -> None:
        super().__init__(student=student)
        self.num_visible = self.num_patches

    def forward(self, images_BCHW: Tensor, teacher_features: TeacherFeatures) -> TokenMask:
        """Build a mask that hides nothing."""
        hidden_BL = torch.zeros(len(images_BCHW), self.num_patches, dtype=torch.bool, device=images_BCHW.device)
        return TokenMask.from_hidden(hidden_BL, self.num_patches)


def count_visible(num_patches: int, ratio: float | None, num_visible: int | None) -> int:
    """Compute V from the share of hidden patches, or check the given number. Raises ValueError if out of range."""
    if (ratio is None) == (num_visible is None):
        raise ValueError(f'Set exactly one of ratio and num_visible, got ratio={ratio}, num_visible={num_visible}.')
    if num_visible is not None and not isinstance(num_visible, int):
        raise ValueError(f'num_visible={num_visible}: it must be a whole number of patches.')
    if ratio is not None and not 0 < ratio < 1:
        raise ValueError(f'ratio={ratio}: it must lie in (0, 1). To hide nothing, use NoMasking.')
    # round first, so that 100 · (1 − 0.9) = 9.999… becomes 10
    visible = num_visible if ratio is None else int(round(num_patches * (1 - ratio), 6))
    assert visible is not None
    if not 1 <= visible < num_patches:
        given = f'ratio={ratio}' if num_visible is None else f'num_visible={num_visible}'
        raise ValueError(
            f'{given} leaves {visible} of {num_patches} patches visible; the number must lie in [1, {num_patches - 1}]. '
            f'Lower the ratio, or use a larger image or smaller patches.'
        )
    return visible


@MODELS.register_module()
class RandomMasking(Masking):
    """Hides a random subset of fixed size, uniformly over all subsets.

    Args:
        ratio: Share of hidden patches; floor(L · (1 − ratio)) stay visible.
        num_visible: Number of visible patches, instead of ``ratio``.
        unit: Side, in patches, of the squares that are hidden (SimMIM): floor(L / unit² · (1 − ratio)) squares stay
            visible, and ``num_visible`` must be a multiple of unit².

    Raises:
        ValueError: Not exactly one of ``ratio`` and ``num_visible`` is given, one is out of range, or ``unit`` does not
            divide the grid.
    """

    def __init__(
        self,
        *,
        student: StudentContext,
        ratio: float | None = None,
        num_visible: int | None = None,
        unit: int = 1,
    ) -> None:
        super().__init__(student=student)
        rows, columns = student.grid
        if unit < 1 or rows % unit or columns % unit:
            raise ValueError(f'unit={unit}: it must divide the grid of {rows} × {columns} patches.')
        self.unit, self.units = unit, (rows // unit, columns // unit)
        if num_visible is not None and isinstance(num_visible, int) and num_visible % unit**2:
            raise ValueError(f'num_visible={num_visible}: with unit={unit} it must be a multiple of {unit**2}.')
        units_visible = num_visible if num_visible is None or unit == 1 else num_visible // unit**2
        self.units_visible = count_visible(self.units[0] * self.units[1], ratio, units_visible)
        self.num_visible = self.units_visible * unit**2

    def forward(self, images_BCHW: Tensor, teacher_features: TeacherFeatures) -> TokenMask:
        """Draw one random mask per image."""
        size = len(images_BCHW), self.units[0] * self.units[1]
        noise_BU = draw_uniform('mask', size, 0, images_BCHW.device)
        kept_BV = noise_BU.argsort(dim=1)[:, : self.units_visible]
        if self.unit == 1:
            return TokenMask.from_kept(kept_BV, self.num_patches)
        hidden_Bhw = torch.ones_like(noise_BU, dtype=torch.bool).scatter(1, kept_BV, False).view(-1, *self.units)
        hidden_BHW = hidden_Bhw.repeat_interleave(self.unit, 1).repeat_interleave(self.unit, 2)
        return TokenMask.from_hidden(hidden_BHW.flatten(1), self.num_visible)
