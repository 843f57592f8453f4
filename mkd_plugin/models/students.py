"""Students: ViTs that compute visible patches only, all patches with mask tokens, or intact images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mkd_plugin.models.backbones import resampling
from mkd_plugin.models.vit import VisionTransformer
from mkd_plugin.models.vit.block import BEIT_INIT
from mkd_plugin.models.vit.embeddings import grid_of
from mkd_plugin.models.vit.taps import parse_tap, run_blocks
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import RegionTokens, TapSpec, TokenFeatures, TokenMask, Tokens


@MODELS.register_module()
class VisibleViT(VisionTransformer):
    """ViT that computes visible patches only; takes the options of :class:`VisionTransformer`.

    Raises:
        ValueError: ``relative_position`` is set, which needs the full grid.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if self.relative_position is not None:
            raise ValueError(
                f'VisibleViT(relative_position={self.relative_position!r}): a relative position bias needs the full grid. Use '
                "a MaskTokenViT, or position='sincos'."
            )


@MODELS.register_module()
class MaskTokenViT(VisionTransformer):
    """ViT that replaces hidden patches by a mask token before positions are added.

    Takes the options of :class:`VisionTransformer`. The number of hidden patches may differ between images. Weights start
    as in BEiT, which MaskDistill and dBOT's symmetric variant follow.
    """

    sees_all = True
    initialization = BEIT_INIT

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.arch.width))
        self.initialization.token_(self.mask_token)

    def reset_parameters(self) -> None:
        """Draw new weights by the class's ``initialization``."""
        super().reset_parameters()
        if hasattr(self, 'mask_token'):  # not yet set when the parent's constructor calls this
            self.initialization.token_(self.mask_token)

    def _embed_patches(self, images_BCHW: Tensor, mask: TokenMask | None) -> Tensor:
        """Embed all patches, replace hidden ones, and add positions, (B, L, D)."""
        patches_BLD = self.patch_embed(images_BCHW)
        if mask is not None:
            patches_BLD = torch.where(mask.hidden_BL.unsqueeze(-1), self.mask_token.to(patches_BLD.dtype), patches_BLD)
        return self._with_positions(patches_BLD)


@MODELS.register_module()
class PlainViT(VisionTransformer):
    """ViT for ``NoMasking``; takes the options of :class:`VisionTransformer`.

    Unlike :class:`VisibleViT` it supports a relative position bias; unlike :class:`MaskTokenViT` it has no mask token,
    which would receive no gradient. Weights start as in BEiT.
    """

    initialization = BEIT_INIT
    can_hide = False

    def _embed_patches(self, images_BCHW: Tensor, mask: TokenMask | None) -> Tensor:
        """Embed all patches and add positions, (B, L, D). Raises ValueError if the mask hides a patch."""
        shown = self.grid[0] * self.grid[1]
        if mask is not None and (mask.ids_keep_BV is None or mask.ids_keep_BV.shape[1] != shown):
            raise ValueError(
                'PlainViT sees every patch, but the masking hides some. Use NoMasking, or a MaskTokenViT or VisibleViT.'
            )
        return super()._embed_patches(images_BCHW, None)


@MODELS.register_module()
class TwoSizeViT(PlainViT):
    """:class:`PlainViT` that computes a part of every batch at a larger size: two resolutions in one run, as RADIO has.

    The pipeline gives images of ``large_size``. The first ``share`` of each process's batch is computed at that size; the
    others are resized to ``img_size`` (bilinear, antialiased). The patch tokens of large images are resampled in the same
    way to the grid of ``img_size``, so that all images have the same targets and heads. Positions are resized in every step.
    A batch of images of ``img_size`` is computed as by :class:`PlainViT`; a saved student is one.

    Args:
        large_size: Side of the pipeline's square images, pixels.
        share: Share of the batch that is computed at it.
        options: Options of :class:`VisionTransformer`.

    Raises:
        ValueError: ``large_size`` is not larger than ``img_size`` or not a multiple of the patch size; ``share`` is not in
            (0, 1); there is a relative position bias.
    """

    def __init__(self, *, large_size: int, share: float = 0.5, **options: Any) -> None:
        super().__init__(**options)
        if self.relative_position is not None:
            raise ValueError("TwoSizeViT has no relative position bias: use position='learned', 'sincos' or rope.")
        if large_size <= max(self.image_hw) or large_size % self.patch_size:
            raise ValueError(
                f'large_size={large_size}: it must be larger than img_size={self.img_size}, and a multiple of '
                f'patch_size={self.patch_size}.'
            )
        if not 0 < share < 1:
            raise ValueError(f'share={share}: it must lie between 0 and 1. For one size, use a PlainViT.')
        self.large_hw, self.share = (large_size, large_size), share
        self.large_grid = grid_of(self.large_hw, self.patch_size)

    def tap_spec(self, name: str) -> TapSpec:
        """Describe a tap of this network. Raises ValueError for relations, which have another size in large images."""
        spec = super().tap_spec(name)
        if spec.kind == 'relation':
            raise ValueError(f"Tap '{name}': TwoSizeViT has tokens only. Use 'output' or 'block:i'.")
        return spec

    def forward(
        self,
        images_BCHW: Tensor,
        mask: TokenMask | None = None,
        taps: Sequence[str] = ('output',),
        depth: int | None = None,
        region: RegionTokens | None = None,
    ) -> TokenFeatures:
        """Compute the features of the requested taps on the grid of ``img_size``; see :class:`VisionTransformer`."""
        if images_BCHW.shape[-2:] != self.large_hw:
            return super().forward(images_BCHW, mask, taps, depth, region)
        count = round(len(images_BCHW) * self.share)
        reduced_BCHW = F.interpolate(images_BCHW[count:], size=self.image_hw, mode='bilinear', antialias=True)
        small = super().forward(reduced_BCHW, None, taps, depth)
        tokens_BND, turns_1NK = self.embed_at(images_BCHW[:count], self.large_grid)
        parsed = [parse_tap(tap, self.arch.depth if depth is None else depth) for tap in taps]
        large = run_blocks(self, tokens_BND, parsed, None, turns_1NK)
        parts = {tap: [self._at_grid(value.at(slice(None))), small.tokens(tap)] for tap, value in large.items()}
        return TokenFeatures({tap: Tokens(torch.cat(both)) for tap, both in parts.items()}, self.num_prefix)

    def _at_grid(self, tokens_BND: Tensor) -> Tensor:
        """Resample the patches of a large image to the grid of ``img_size``, (B, P + L, D)."""
        prefix_BPD, patches_BLD = tokens_BND.tensor_split([self.num_prefix], dim=1)
        sides = zip(self.large_grid, self.grid, strict=True)
        down, across = (resampling(large, small, tokens_BND) for large, small in sides)
        map_BhwD = torch.einsum(
            'yh,xw,bhwd->byxd', down, across, patches_BLD.reshape(len(patches_BLD), *self.large_grid, -1)
        )
        return torch.cat([prefix_BPD, map_BhwD.flatten(1, 2)], dim=1)


@MODELS.register_module()
class ClassifierViT(VisionTransformer):
    """Backbone for mmpretrain's ``ImageClassifier``: mean of the last block's patch tokens, then a *new* LayerNorm.

    Used by dBOT and MAE for fine-tuning (``global_pool``): ``ln2`` replaces the encoder's final norm ``ln1``. Keys match
    mmpretrain's ``VisionTransformer(out_type='avg_featmap', final_norm=False)``. Takes the options of
    :class:`VisionTransformer`; positions are learned by default, as in the papers.

    Args:
        position: Absolute positions, as in :class:`VisionTransformer`.
        frozen_patch_embed: Freeze the patch embedding (fine-tuning of CLIP itself).
    """

    may_be_new = ('ln2.weight', 'ln2.bias')  # not in a pre-training checkpoint

    def __init__(self, *, position: str = 'learned', frozen_patch_embed: bool = False, **options: Any) -> None:
        super().__init__(position=position, **options)
        if self.proj is not None:
            raise ValueError('ClassifierViT(projection=…): the features are not projected. Leave it out.')
        self.patch_embed.requires_grad_(not frozen_patch_embed)
        del self.ln1
        self.ln2 = nn.LayerNorm(self.arch.width, eps=1e-6)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        """Compute image features (B, D), in the tuple that mmpretrain's necks and heads expect."""
        tokens = super().forward(images_BCHW, taps=('block:-1',)).tokens('block:-1')
        return (self.ln2(tokens[:, self.num_prefix :].mean(dim=1)),)
