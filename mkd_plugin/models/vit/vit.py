"""The Vision Transformer of student, teacher and backbone (shape legend: ``mkd_plugin/structures.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from mkd_plugin.models.vit.arch import Arch, resolve_arch
from mkd_plugin.models.vit.block import Block, drop_path_rates, init_linears
from mkd_plugin.models.vit.positions import sincos_positions
from mkd_plugin.models.vit.taps import Tap, end_at_one_block, parse_tap
from mkd_plugin.structures import RegionTokens, TapSpec, TapValue, TokenFeatures, TokenMask, Tokens, take

__all__ = ['PatchEmbed', 'VisionTransformer', 'cut_patches']


def cut_patches(images_BCHW: Tensor, size: int) -> Tensor:
    """Cut images into square patches of ``size`` pixels, row-major, (B, L, C, size, size)."""
    batch, channels, height, width = images_BCHW.shape
    cut = images_BCHW.reshape(batch, channels, height // size, size, width // size, size)
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


class PatchEmbed(nn.Module):
    """Linear embedding of patches. The weight is kept as a convolution's, which is how every checkpoint has it."""

    def __init__(self, *, patch_size: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.projection = nn.Conv2d(in_channels, width, patch_size, patch_size)

    def forward(self, images_BCHW: Tensor, ids_keep_BV: Tensor | None = None) -> Tensor:
        """Embed all L patches, or the chosen V: the others are never multiplied. (B, L or V, D)."""
        patches_BLC = cut_patches(images_BCHW, self.patch_size).flatten(2)
        if ids_keep_BV is not None:
            patches_BLC = take(patches_BLC, ids_keep_BV)
        return F.linear(patches_BLC, self.projection.weight.flatten(1), self.projection.bias)


class VisionTransformer(BaseModule):
    """A plain pre-norm ViT with a cls token, parameter names as in mmpretrain's ``VisionTransformer``.

    Under a mask it computes the visible patches only.

    Args:
        arch: Size: 'ti', 's', 'b', 'l', 'h' or ``dict(width=, depth=, num_heads=)``.
        img_size: Side of the square input, pixels.
        patch_size: Side of a patch, pixels.
        in_channels: Colour channels.
        drop_path_rate: Stochastic depth of the last block; earlier blocks have less, linearly from 0.
        position: 'sincos' (fixed) or 'learned' (which starts from the same table).
        activation_checkpointing: Compute every block again in the backward pass instead of keeping its activations.
        init_cfg: mmengine's; ``dict(type='Pretrained', checkpoint=…, prefix=…)`` is loaded strictly, with a report.

    Raises:
        ValueError: The image is not a whole number of patches; an unknown ``arch`` or ``position``.
    """

    pos_embed: Tensor
    num_prefix = 1
    sees_all = False  # under a mask, only the visible patches are computed

    def __init__(
        self,
        *,
        arch: str | dict[str, Any] | Arch = 'b',
        img_size: int = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
        position: str = 'sincos',
        activation_checkpointing: bool = False,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if img_size % patch_size:
            raise ValueError(
                f'img_size={img_size} is not divisible by patch_size={patch_size}. '
                f'Use {img_size // patch_size * patch_size} or another patch size.'
            )
        if position not in ('sincos', 'learned'):
            raise ValueError(f"position='{position}': use 'sincos' (fixed) or 'learned'.")
        self.arch = resolve_arch(arch)
        self.img_size, self.patch_size, self.in_channels = img_size, patch_size, in_channels
        self.grid = (img_size // patch_size, img_size // patch_size)
        width = self.arch.width
        self.patch_embed = PatchEmbed(patch_size=patch_size, in_channels=in_channels, width=width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        table = sincos_positions(self.grid, width)
        if position == 'learned':
            self.pos_embed = nn.Parameter(table)
        else:
            self.register_buffer('pos_embed', table)
        self.layers = nn.ModuleList(
            Block(
                width=width,
                num_heads=self.arch.num_heads,
                mlp_ratio=self.arch.mlp_ratio,
                drop_path=rate,
                recompute=activation_checkpointing,
            )
            for rate in drop_path_rates(drop_path_rate, self.arch.depth)
        )
        self.ln1: nn.Module = nn.LayerNorm(width, eps=1e-6)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights: xavier-uniform linears, the patch embedding as a linear, cls normal(0.02)."""
        init_linears(self)
        projection = self.patch_embed.projection
        nn.init.xavier_uniform_(projection.weight.view(projection.weight.shape[0], -1))
        assert projection.bias is not None
        nn.init.zeros_(projection.bias)
        nn.init.normal_(self.cls_token, std=0.02)
        with torch.no_grad():  # the fixed table as well: a checkpoint may have brought another
            self.pos_embed.copy_(sincos_positions(self.grid, self.arch.width))

    def init_weights(self) -> None:
        """Load what ``init_cfg`` names. New weights were drawn when the network was built.

        Raises:
            ValueError: The checkpoint does not cover the network.
        """
        entries = [self.init_cfg] if isinstance(self.init_cfg, dict) else self.init_cfg or []
        pretrained = [entry for entry in entries if entry['type'] == 'Pretrained']
        if not pretrained:
            super().init_weights()
        for entry in pretrained:
            from mkd_plugin.checkpoint.load import load_backbone  # a network can be built without a checkpoint's code

            load_backbone(self, entry['checkpoint'], prefix=entry.get('prefix'))
            self._is_init = True

    def tap_spec(self, name: str) -> TapSpec:
        """What a tap of this network gives. Raises ValueError if there is no such tap."""
        if parse_tap(name, self.arch.depth).kind == 'relation':
            return TapSpec('relation', self.arch.num_heads)
        return TapSpec('tokens', self.arch.width)

    def embed(self, images_BCHW: Tensor, mask: TokenMask | None) -> Tensor:
        """Tokens that enter the first block: cls, then the visible patches (all without a mask), (B, 1 + V, D)."""
        if images_BCHW.shape[-2:] != (self.img_size, self.img_size):
            raise ValueError(
                f'The network was built for img_size={self.img_size}, got images of {tuple(images_BCHW.shape[-2:])}. '
                "Set the backbone's img_size, or the pipeline's crop, so that they agree."
            )
        if mask is not None and mask.ids_keep_BV is None:
            raise ValueError(
                'A network that computes visible patches only needs the same number of them in every image. Use a masking '
                'with a fixed number, or a MaskTokenViT.'
            )
        ids_keep_BV = None if mask is None else mask.ids_keep_BV
        patches_BVD = self.patch_embed(images_BCHW, ids_keep_BV)
        positions = self.pos_embed[:, 1:]
        if ids_keep_BV is not None:
            positions = take(positions.expand(len(images_BCHW), -1, -1), ids_keep_BV)
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(images_BCHW), -1, -1)
        return torch.cat([cls, patches_BVD + positions], dim=1)

    def forward(
        self,
        images_BCHW: Tensor,
        mask: TokenMask | None = None,
        taps: Sequence[str] = ('output',),
        depth: int | None = None,
        region: RegionTokens | None = None,
    ) -> TokenFeatures:
        """Compute features, and nothing that no tap reads.

        Args:
            images_BCHW: Normalised images of ``img_size``.
            mask: What is hidden; None shows everything.
            taps: Names of the features to return.
            depth: Take the network as if it had only this many blocks; None for all.
            region: The only tokens that will be read, None for all. The last block leaves out the others if all taps are
                its output.

        Returns:
            The taps' values.
        """
        depth = self.arch.depth if depth is None else depth
        tokens_BND = self.embed(images_BCHW, mask)
        parsed = [parse_tap(name, depth) for name in taps]
        shown = None if self.sees_all else mask
        if shown is not None or region is None or region.patches == 'all' or not end_at_one_block(parsed):
            return TokenFeatures(self._run_blocks(tokens_BND, parsed), self.num_prefix, shown)
        values = self._run_blocks(tokens_BND, parsed, region.rows(self.num_prefix))
        return TokenFeatures(values, self.num_prefix, region=region)

    def _run_blocks(self, x_BND: Tensor, taps: Sequence[Tap], rows_BR: Tensor | None = None) -> dict[str, TapValue]:
        """Run up to the highest tap and no further; the last of these blocks for ``rows_BR`` only."""
        values: dict[str, TapValue] = {}
        last = max(tap.position for tap in taps)
        for position in range(last + 1):
            here = [tap for tap in taps if tap.position == position]
            relations = [tap for tap in here if tap.kind == 'relation']
            for tap in here:
                if tap.kind != 'relation':
                    values[tap.name] = Tokens(self.ln1(x_BND) if tap.kind == 'output' else x_BND)
            if position < last:
                x_BND, query_key = self.layers[position](x_BND, rows_BR if position == last - 1 else None)
            elif relations:
                block: Block = self.layers[position]  # type: ignore[assignment]
                query_key = block.query_key(x_BND)
            values.update({tap.name: query_key for tap in relations})
        return values

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Layer of a parameter for layer-wise rate decay, as mmpretrain's constructor asks for it.

        Returns:
            (i, depth + 2): i = 0 for patch embedding, cls and position, k for block k (1-based), depth + 1 for the rest.
        """
        num_layers = self.arch.depth + 2
        if not param_name.startswith(prefix):
            return num_layers - 1, num_layers
        name = param_name[len(prefix) :]
        if name.startswith(('cls_token', 'pos_embed', 'patch_embed', 'mask_token')):
            return 0, num_layers
        if name.startswith('layers.'):
            return int(name.split('.')[1]) + 1, num_layers
        return num_layers - 1, num_layers
