"""Heads that predict hidden patches without mask tokens that see each other: data2vec 2.0's and I-JEPA's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mkd_plugin.models.heads.decoder import TransformerDecoder, cls_and_patches
from mkd_plugin.models.protocols import Head
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import RegionTokens, TokenFeatures, take


class ConvLayer(nn.Module):
    """Grouped convolution, LayerNorm without affine, GELU; with a residual branch if the width stays."""

    def __init__(self, in_width: int, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_width, width, kernel, padding=kernel // 2, groups=groups)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """Apply the layer to feature maps."""
        out_BHWD = self.conv(x_BDHW).permute(0, 2, 3, 1)
        out_BDHW = F.gelu(F.layer_norm(out_BHWD, out_BHWD.shape[-1:])).permute(0, 3, 1, 2)
        return out_BDHW + x_BDHW if out_BDHW.shape == x_BDHW.shape else out_BDHW


@MODELS.register_module()
class ConvDecoder(Head):
    """data2vec 2.0's decoder: visible tokens and noise on the grid, convolutions, a linear layer; no positions.

    Args:
        depth: Number of convolutions.
        width: Their channels.
        kernel: Side of a kernel, odd.
        groups: Groups of channels; they must divide ``width`` and the student's width.
        noise: Standard deviation of the values in place of hidden tokens.
    """

    per_process = True  # the noise
    reaches_hidden = True
    predicts_cls = False

    def __init__(
        self,
        *,
        in_width: int,
        out_width: int,
        grid: tuple[int, int],
        depth: int = 6,
        width: int = 768,
        kernel: int = 3,
        groups: int = 16,
        noise: float = 0.01,
    ) -> None:
        super().__init__(in_width=in_width, out_width=out_width, grid=grid)
        if min(depth, groups) < 1 or kernel % 2 == 0 or width % groups or in_width % groups:
            raise ValueError(
                f'depth={depth}, kernel={kernel}, groups={groups}: use at least one layer, an odd kernel, and groups that '
                f"divide width={width} and the student's width {in_width}."
            )
        widths = [in_width, *[width] * depth]
        self.layers = nn.Sequential(
            *(ConvLayer(before, after, kernel, groups) for before, after in zip(widths, widths[1:], strict=False))
        )
        self.predict = nn.Linear(width, out_width)
        self.noise = noise

    def forward(self, features: TokenFeatures, taps: Sequence[str], region: RegionTokens) -> Tensor:
        """Compute predictions, (B, R, out_width)."""
        patches_BVD = features.tokens(taps[0])[:, features.num_prefix :]
        mask = features.mask
        if mask is not None:
            assert mask.ids_hide_BM is not None
            noise_BMD = patches_BVD.new_empty(*mask.ids_hide_BM.shape, patches_BVD.shape[-1]).normal_(std=self.noise)
            patches_BVD = mask.fill(patches_BVD, noise_BMD)
        maps_BDHW = self.layers(patches_BVD.transpose(1, 2).reshape(len(patches_BVD), -1, *self.grid))
        return self.predict(take(maps_BDHW.flatten(2).transpose(1, 2), region.ids_BR))


@MODELS.register_module()
class TargetPredictor(TransformerDecoder):
    """I-JEPA's predictor: a :class:`TransformerDecoder` of the visible tokens and the mask tokens of one target block.

    Each block of the region has a pass of its own, so that mask tokens of different blocks do not see each other.

    Args:
        blocks: Number of blocks in the region, of equal size (``targets`` of ``MultiBlockMasking``).
        options: Options of ``TransformerDecoder``: depth, width, num_heads, drop_path_rate, activation_checkpointing.
    """

    predicts_cls = False
    reads_visible = True

    def __init__(self, *, blocks: int = 4, **options: Any) -> None:
        super().__init__(**options)
        if blocks < 1:
            raise ValueError(f'blocks={blocks}: it must be at least 1.')
        self.blocks = blocks

    def forward(self, features: TokenFeatures, taps: Sequence[str], region: RegionTokens) -> Tensor:
        """Compute predictions, (B, R, out_width)."""
        assert features.mask is not None and features.mask.ids_keep_BV is not None
        if region.ids_BR.shape[1] % self.blocks:
            raise ValueError(
                f'blocks={self.blocks}: the region has {region.ids_BR.shape[1]} tokens. Set it as in the masking.'
            )
        tokens_BND, prefix = self.embed(cls_and_patches(features, taps[0])), min(features.num_prefix, 1)
        positions_BND = self.pos_embed.expand(len(tokens_BND), -1, -1)
        context_BVD = tokens_BND[:, prefix:] + take(positions_BND, features.mask.ids_keep_BV + 1)
        asked_BRD = self.mask_token + take(positions_BND, region.ids_BR + 1)
        asked = asked_BRD.reshape(self.blocks * len(asked_BRD), -1, asked_BRD.shape[-1])
        context = torch.cat([tokens_BND[:, :prefix], context_BVD], dim=1).repeat_interleave(self.blocks, dim=0)
        x = torch.cat([context, asked], dim=1)
        for block, factors in zip(self.layers, self.drop_path(x), strict=True):
            x, _ = block(x, kept_2B11=factors)
        predicted = self.predict(self.norm(x[:, -asked.shape[1] :]))
        return predicted.reshape(len(tokens_BND), -1, self.out_width)
