"""Heads whose queries attend to the student's tokens: CrossMAE's decoder and CAE v2's regressor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mkd_plugin.models.heads.decoder import cls_and_patches
from mkd_plugin.models.protocols import Head
from mkd_plugin.models.vit import Arch, sincos_positions
from mkd_plugin.models.vit.attention import LayerScale
from mkd_plugin.models.vit.block import MAE_INIT, FeedForward
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import RegionTokens, TokenFeatures, take


class CrossAttention(nn.Module):
    """Multi-head attention of queries to other tokens.

    Args:
        width: Channels of the queries and the output.
        source_width: Channels of the tokens that they attend to.
        num_heads: Heads; each has ``width // num_heads`` channels.
    """

    def __init__(self, *, width: int, source_width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(source_width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, queries_BRD: Tensor, keys_BNC: Tensor, values_BNC: Tensor | None = None) -> Tensor:
        """Compute the update of the queries, (B, R, D); values are computed from the keys' tokens if they are not given."""
        if values_BNC is None:
            k_BND, v_BND = self.kv(keys_BNC).chunk(2, dim=-1)
        else:
            (k_DC, v_DC), (k_D, v_D) = self.kv.weight.chunk(2), self.kv.bias.chunk(2)
            k_BND, v_BND = F.linear(keys_BNC, k_DC, k_D), F.linear(values_BNC, v_DC, v_D)
        q, k, v = (x.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for x in (self.q(queries_BRD), k_BND, v_BND))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class CrossBlock(nn.Module):
    """Pre-norm block of a decoder without self-attention: cross-attention, then MLP."""

    def __init__(self, *, width: int, source_width: int, num_heads: int) -> None:
        super().__init__()
        self.ln1, self.ln2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attn = CrossAttention(width=width, source_width=source_width, num_heads=num_heads)
        self.ffn = FeedForward(width=width, hidden=4 * width)

    def forward(self, queries_BRD: Tensor, source_BNC: Tensor) -> Tensor:
        """Update the queries."""
        queries_BRD = queries_BRD + self.attn(self.ln1(queries_BRD), source_BNC)
        return queries_BRD + self.ffn(self.ln2(queries_BRD))


@MODELS.register_module()
class CrossAttentionDecoder(Head):
    """CrossMAE's decoder: a mask token with a position attends to the student's tokens; predictions do not see each other.

    Each block attends to its own learned sum of the objective's taps (``input:0`` and every block in CrossMAE), normalised.
    The cost is that of the region's tokens only.

    Args:
        num_taps: Number of the objective's taps; the objective sets it.
        depth: Number of blocks.
        width: Width of the decoder.
        num_heads: Attention heads.
    """

    reaches_hidden = True
    predicts_cls = False
    many_taps = True
    pos_embed: Tensor

    def __init__(
        self,
        *,
        in_width: int,
        out_width: int,
        grid: tuple[int, int],
        num_taps: int,
        depth: int = 12,
        width: int = 512,
        num_heads: int = 16,
    ) -> None:
        super().__init__(in_width=in_width, out_width=out_width, grid=grid)
        Arch(width, depth, num_heads)  # checks the sizes
        self.mix = nn.Linear(num_taps, depth, bias=False)
        self.source_norms = nn.ModuleList(nn.LayerNorm(in_width, eps=1e-6) for _ in range(depth))
        self.layers = nn.ModuleList(
            CrossBlock(width=width, source_width=in_width, num_heads=num_heads) for _ in range(depth)
        )
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer('pos_embed', sincos_positions(grid, width, num_prefix=0))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.predict = nn.Linear(width, out_width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights: linear layers and the weights of the sums xavier-uniform, mask token normal(0.02)."""
        MAE_INIT.init_linears(self)
        MAE_INIT.token_(self.mask_token)

    def forward(self, features: TokenFeatures, taps: Sequence[str], region: RegionTokens) -> Tensor:
        """Compute predictions, (B, R, out_width)."""
        tokens_TBND = torch.stack([cls_and_patches(features, tap) for tap in taps])
        sources = torch.tensordot(self.mix.weight, tokens_TBND, dims=1)
        positions_BLD = self.pos_embed.expand(tokens_TBND.shape[1], -1, -1)
        queries_BRD = self.mask_token + take(positions_BLD, region.ids_BR)
        for block, norm, source_BNC in zip(self.layers, self.source_norms, sources, strict=True):
            queries_BRD = block(queries_BRD, norm(source_BNC))
        return self.predict(self.norm(queries_BRD))


class RegressorBlock(nn.Module):
    """CAE's block: queries attend to other tokens, positions are added to queries and keys, not to values.

    As in the reference code, the MLP's residual branch starts from the normalised tokens.
    """

    def __init__(self, *, width: int, num_heads: int, layer_scale: float) -> None:
        super().__init__()
        self.norm_q, self.norm_k, self.norm_v, self.ln2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(4))
        self.attn = CrossAttention(width=width, source_width=width, num_heads=num_heads)
        self.gamma1 = LayerScale(width, layer_scale)
        self.ffn = FeedForward(width=width, hidden=4 * width, layer_scale=layer_scale)

    def forward(self, queries_BMD: Tensor, source_BND: Tensor, places_BMD: Tensor, source_places_BND: Tensor) -> Tensor:
        """Update the queries."""
        keys_BND, values_BND = self.norm_k(source_BND + source_places_BND), self.norm_v(source_BND)
        update_BMD = self.attn(self.norm_q(queries_BMD + places_BMD), keys_BND, values_BND)
        queries_BMD = self.ln2(queries_BMD + self.gamma1(update_BMD))
        return queries_BMD + self.ffn(queries_BMD)


@MODELS.register_module()
class ContextRegressor(Head):
    """CAE v2's head: regresses hidden tokens from visible ones, then one LayerNorm and linear layer for all tokens.

    In each block, mask tokens attend to the visible patches and to themselves. Cls and visible tokens go straight to the
    linear layer.

    Args:
        depth: Number of blocks.
        num_heads: Attention heads.
        layer_scale: Initial value of layer scale.
    """

    reaches_hidden = True
    pos_embed: Tensor

    def __init__(
        self,
        *,
        in_width: int,
        out_width: int,
        grid: tuple[int, int],
        depth: int = 4,
        num_heads: int = 12,
        layer_scale: float = 0.1,
    ) -> None:
        super().__init__(in_width=in_width, out_width=out_width, grid=grid)
        Arch(in_width, depth, num_heads)  # checks the sizes
        self.layers = nn.ModuleList(
            RegressorBlock(width=in_width, num_heads=num_heads, layer_scale=layer_scale) for _ in range(depth)
        )
        self.mask_token = nn.Parameter(torch.zeros(1, 1, in_width))
        self.register_buffer('pos_embed', sincos_positions(grid, in_width, num_prefix=0))
        self.norm = nn.LayerNorm(in_width, eps=1e-6)
        self.predict = nn.Linear(in_width, out_width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights: linear layers xavier-uniform, mask token normal(0.02)."""
        MAE_INIT.init_linears(self)
        MAE_INIT.token_(self.mask_token)

    def forward(self, features: TokenFeatures, taps: Sequence[str], region: RegionTokens) -> Tensor:
        """Compute predictions, (B, R, out_width)."""
        mask = features.mask
        if mask is None:  # nothing is hidden
            return self.predict(self.norm(features.select(taps[0], region)))
        assert mask.ids_keep_BV is not None and mask.ids_hide_BM is not None and mask.ids_restore_BL is not None
        tokens_BND, prefix = cls_and_patches(features, taps[0]), min(features.num_prefix, 1)
        positions_BLD = self.pos_embed.expand(len(tokens_BND), -1, -1)
        places_BMD = take(positions_BLD, mask.ids_hide_BM)
        places_BLD = torch.cat([take(positions_BLD, mask.ids_keep_BV), places_BMD], dim=1)
        hidden_BMD = self.mask_token.to(tokens_BND.dtype).expand_as(places_BMD)
        for block in self.layers:
            hidden_BMD = block(
                hidden_BMD, torch.cat([tokens_BND[:, prefix:], hidden_BMD], dim=1), places_BMD, places_BLD
            )
        predicted = self.predict(self.norm(torch.cat([tokens_BND, hidden_BMD], dim=1)))
        places = replace(region, ids_BR=mask.ids_restore_BL.gather(1, region.ids_BR))
        return take(predicted, places.rows(prefix))
