"""Maskings that choose more than the hidden patches: those that are predicted, and several masks of one image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mkd_plugin.models.masking.random import RandomMasking, count_visible
from mkd_plugin.models.protocols import Masking, StudentContext, TeacherFeatures
from mkd_plugin.registry import MODELS, build
from mkd_plugin.structures import RegionSpec, RegionTokens, TokenMask
from mkd_plugin.utils.draws import draw_uniform


@MODELS.register_module()
class SampledMasking(RandomMasking):
    """:class:`RandomMasking` with a region 'sample': a random part of the hidden patches (CrossMAE's partial reconstruction).

    Args:
        predicted: Share of *all* patches that are in the sample; floor(L · predicted).

    Raises:
        ValueError: The sample is empty, or larger than the hidden patches; or an error of ``RandomMasking``.
    """

    def __init__(self, *, student: StudentContext, predicted: float, **options: Any) -> None:
        super().__init__(student=student, **options)
        self.num_predicted = int(round(self.num_patches * predicted, 6))
        hidden = self.num_patches - self.num_visible
        if not 1 <= self.num_predicted <= hidden:
            raise ValueError(
                f'predicted={predicted} asks for {self.num_predicted} of {self.num_patches} patches; the number must lie in '
                f'[1, {hidden}], the number of hidden patches.'
            )

    def regions(self) -> Mapping[str, RegionSpec]:
        """Declare 'sample' beside the usual regions."""
        return {**super().regions(), 'sample': RegionSpec('sample')}

    def forward(self, images_BCHW: Tensor, teacher_features: TeacherFeatures) -> TokenMask:
        """Draw one mask and sample per image."""
        mask = super().forward(images_BCHW, teacher_features)
        assert mask.ids_hide_BM is not None
        noise_BM = draw_uniform('sample', mask.ids_hide_BM.shape, 0, images_BCHW.device)
        chosen_BR = noise_BM.argsort(dim=1)[:, : self.num_predicted]
        return replace(mask, regions={'sample': mask.ids_hide_BM.gather(1, chosen_BR)})


@MODELS.register_module()
class SeveralMasks(Masking):
    """Draws several masks of another masking for each image: each teacher that sees the image runs once for all of them.

    Args:
        masking: Config of the masking.
        count: Masks per image (data2vec 2.0).

    Raises:
        ValueError: ``count`` is not positive.
    """

    def __init__(self, *, student: StudentContext, masking: dict[str, Any], count: int) -> None:
        super().__init__(student=student)
        if count < 1:
            raise ValueError(f'count={count}: it must be at least 1.')
        self.masking: Masking = build(masking, student=student)
        self.num_visible, self.count = self.masking.num_visible, count
        self.per_image = count * self.masking.per_image
        self.per_process, self.reads_cls = self.masking.per_process, self.masking.reads_cls

    def regions(self) -> Mapping[str, RegionSpec]:
        """Declare the masking's regions."""
        return self.masking.regions()

    def teacher_taps(self) -> Mapping[str, tuple[str, ...]]:
        """List what the masking reads."""
        return self.masking.teacher_taps()

    def forward(self, images_BCHW: Tensor, teacher_features: TeacherFeatures) -> TokenMask:
        """Draw ``count`` masks per image."""
        repeated = images_BCHW.repeat_interleave(self.count, dim=0)
        mask = self.masking(repeated, lambda name: teacher_features(name).repeat(self.count))
        return replace(mask, per_image=self.per_image)


@MODELS.register_module()
class DisjointMasks(Masking):
    """Divides an image's patches at random into parts of equal size; each of the image's masks shows one (SplitMask, ExtreMA).

    Args:
        parts: Number of parts, and of masks per image; floor(L / parts) patches are visible in each.

    Raises:
        ValueError: ``parts`` is below 2 or exceeds the number of patches.
    """

    def __init__(self, *, student: StudentContext, parts: int) -> None:
        super().__init__(student=student)
        if not 2 <= parts <= self.num_patches:
            raise ValueError(f'parts={parts}: it must lie in [2, {self.num_patches}], the number of patches.')
        self.per_image, self.num_visible = parts, self.num_patches // parts

    def forward(self, images_BCHW: Tensor, teacher_features: TeacherFeatures) -> TokenMask:
        """Draw the parts of each image."""
        order_BL = draw_uniform('mask', (len(images_BCHW), self.num_patches), 0, images_BCHW.device).argsort(dim=1)
        kept = order_BL[:, : self.per_image * self.num_visible].reshape(-1, self.num_visible)
        return replace(TokenMask.from_kept(kept, self.num_patches), per_image=self.per_image)


@MODELS.register_module()
class IntactAndMasked(Masking):
    """Two views of each image's patches: all of them, and, for a part of the batch, a random subset (Proteus).

    The region 'intact' has all patches of the first view and 'intact_cls' its cls token; 'hidden' is in the second.

    Args:
        ratio: Share of hidden patches of a masked image.
        share: Share of the batch, its first images, that is masked in the second view; the others show all patches again.

    Raises:
        ValueError: ``ratio`` or ``share`` is out of range, or the student computes visible patches only.
    """

    per_image = 2

    def __init__(self, *, student: StudentContext, ratio: float, share: float = 0.5) -> None:
        super().__init__(student=student)
        self.num_visible, self.share = count_visible(self.num_patches, ratio, None), share
        if not 0 < share <= 1:
            raise ValueError(f'share={share}: it must lie in (0, 1].')
        if not student.network.sees_all:
            raise ValueError(
                f'IntactAndMasked hides nothing in some views, but {type(student.network).__name__} needs the same number of '
                'visible patches in all. Use a MaskTokenViT.'
            )

    def regions(self) -> Mapping[str, RegionSpec]:
        """Declare 'intact' and 'intact_cls' beside the usual regions."""
        return {**super().regions(), **{name: RegionSpec(name) for name in ('intact', 'intact_cls')}}

    def forward(self, images_BCHW: Tensor, teacher_features: TeacherFeatures) -> TokenMask:
        """Draw both masks of each image."""
        batch, device = len(images_BCHW), images_BCHW.device
        ranks_BL = draw_uniform('mask', (batch, self.num_patches), 0, device).argsort(dim=1).argsort(dim=1)
        chosen_B1 = torch.arange(batch, device=device).unsqueeze(1) < int(batch * self.share)
        masked_BL = (ranks_BL >= self.num_visible) & chosen_B1
        hidden_BL = torch.stack([torch.zeros_like(masked_BL), masked_BL], dim=1).flatten(0, 1)
        weight_B1 = (torch.arange(2 * batch, device=device).unsqueeze(1) % 2 == 0).float()
        ids_BL = torch.arange(self.num_patches, device=device).expand_as(hidden_BL)
        regions = {
            'intact': RegionTokens('intact', False, ids_BL, weight_B1.expand(ids_BL.shape)),
            'intact_cls': RegionTokens('intact_cls', True, ids_BL[:, :0], weight_B1),
        }
        return TokenMask(hidden_BL, most_hidden=self.num_patches - self.num_visible, regions=regions, per_image=2)
