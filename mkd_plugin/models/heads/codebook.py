"""A head that passes tokens through discrete codes: VQ-KD, the tokenizer of BEiT v2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from mmengine.dist import all_reduce, broadcast
from torch import Tensor, nn
from torch.nn import functional as F

from mkd_plugin.models.heads.decoder import TransformerDecoder
from mkd_plugin.models.precision import without_autocast
from mkd_plugin.models.protocols import Head
from mkd_plugin.models.vit.block import MAE_INIT, Initialization
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import RegionTokens, TokenFeatures, Tokens, take

KMEANS_ROUNDS = 10  # as BEiT v2


class Codebook(nn.Module):
    """Unit vectors that follow the inputs they are nearest to, as moving averages (VQ-KD).

    In training, each code c with inputs z becomes ‖decay · c + (1 − decay) · ‖Σ z‖‖, where ‖·‖ scales to length 1 and the sum
    is over all processes; a code without inputs stays. Codes are k-means of the first batch by cosine, as in the commands of
    BEiT v2; k-means starts from vectors of the first process, evenly spaced in its batch.

    Args:
        size: Number of codes.
        width: Channels of a code.
        decay: Weight of the old code.
    """

    codes_KC: Tensor

    def __init__(self, *, size: int, width: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer('codes_KC', torch.empty(size, width))
        self.begun = False  # no buffer: to read one in every step would wait for the device

    def reset_parameters(self) -> None:
        """Draw new codes, which the first batch replaces."""
        F.normalize(self.codes_KC.normal_(), dim=-1, out=self.codes_KC)
        self.begun = False

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.begun = self.begun or f'{prefix}codes_KC' in state_dict

    @torch.no_grad()
    def forward(self, z_NC: Tensor) -> Tensor:
        """Look up the code of the largest cosine for each unit vector, (N, C), then let the codes follow."""
        if self.training and not self.begun:
            self._begin(z_NC)
        ids_N = (z_NC @ self.codes_KC.T).argmax(dim=1)
        nearest_NC = self.codes_KC[ids_N]
        if self.training:
            self._follow(z_NC, ids_N, self.decay)
        return nearest_NC

    def _begin(self, z_NC: Tensor) -> None:
        spaced_K = torch.arange(len(self.codes_KC), device=z_NC.device) * len(z_NC) // len(self.codes_KC)
        self.codes_KC.copy_(z_NC[spaced_K])
        broadcast(self.codes_KC)
        for _ in range(KMEANS_ROUNDS):
            self._follow(z_NC, (z_NC @ self.codes_KC.T).argmax(dim=1), 0.0)
        self.begun = True

    def _follow(self, z_NC: Tensor, ids_N: Tensor, decay: float) -> None:
        hits_NK = z_NC.new_zeros(len(z_NC), len(self.codes_KC)).scatter_(1, ids_N.unsqueeze(1), 1.0)
        all_reduce(counts_K := hits_NK.sum(0))
        all_reduce(sums_KC := hits_NK.T @ z_NC)
        moved_KC = decay * self.codes_KC + (1 - decay) * F.normalize(sums_KC, dim=-1)
        hit_K1 = (counts_K > 0).unsqueeze(1)
        self.codes_KC.copy_(torch.where(hit_K1, F.normalize(moved_KC, dim=-1), self.codes_KC))


@MODELS.register_module()
class CodebookDecoder(Head):
    """VQ-KD (BEiT v2): project each patch to a unit vector, replace it by the nearest code, decode the codes to the target.

    The gradient skips the replacement (straight-through). The commitment, the mean squared difference of vector and code,
    is added to the objective's loss. Use it with ``CosineLoss``, ``NoMasking`` and ``region='all'``. Unlike BEiT v2's decoder,
    this one has fixed positions and no cls token.

    Args:
        codes: Number of codes.
        code_width: Channels of a code.
        decay: Weight of the old code in a code's moving average.
        commitment: Factor of the commitment.
        depth: Blocks of the decoder.
        width: Its width.
        num_heads: Its attention heads.
        initialization: Distribution of the initial weights; the objective sets the student's.

    Raises:
        ValueError: There are fewer than two codes, or ``decay`` is not in [0, 1).
    """

    predicts_cls = False

    def __init__(
        self,
        *,
        in_width: int,
        out_width: int,
        grid: tuple[int, int],
        codes: int = 8192,
        code_width: int = 32,
        decay: float = 0.99,
        commitment: float = 1.0,
        depth: int = 1,
        width: int = 768,
        num_heads: int = 12,
        initialization: Initialization = MAE_INIT,
    ) -> None:
        super().__init__(in_width=in_width, out_width=out_width, grid=grid)
        if codes < 2 or not 0 <= decay < 1:
            raise ValueError(f'codes={codes}, decay={decay}: use at least two codes, and a decay from 0 to below 1.')
        self.commitment, self.initialization = commitment, initialization
        self.encode = nn.Sequential(nn.Linear(in_width, in_width), nn.Tanh(), nn.Linear(in_width, code_width))
        self.codebook = Codebook(size=codes, width=code_width, decay=decay)
        self.decoder = TransformerDecoder(
            in_width=code_width, out_width=out_width, grid=grid, depth=depth, width=width, num_heads=num_heads
        )
        self.decoder.mask_token.requires_grad_(False)  # every patch has a code
        predict = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, out_width))
        self.decoder.predict = predict  # type: ignore[assignment]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights and codes."""
        self.codebook.reset_parameters()
        self.initialization.init_linears(self)
        self.initialization.init_blocks(self.decoder.layers)

    def forward(self, features: TokenFeatures, taps: Sequence[str], region: RegionTokens) -> Tensor:
        """Compute predictions, (B, R, out_width), and keep the commitment of these tokens in ``penalty_BR``."""
        patches_BLD = features.tokens(taps[0])[:, features.num_prefix :]
        length = self.grid[0] * self.grid[1]
        if patches_BLD.shape[1] != length:
            raise ValueError(
                f'CodebookDecoder needs all {length} patches, but the student computes {patches_BLD.shape[1]}. Use a PlainViT.'
            )
        with without_autocast(patches_BLD):  # as BEiT v2: bfloat16 would choose other codes
            raw_BLC = self.encode(patches_BLD.to(next(self.encode.parameters()).dtype))
            z_BLC = F.normalize(raw_BLC.to(self.codebook.codes_KC.dtype), dim=-1)
            nearest_BLC = self.codebook(z_BLC.detach().flatten(0, 1)).view_as(z_BLC)
            commitment_BL1 = self.commitment * (z_BLC - nearest_BLC).square().mean(-1, keepdim=True)
        self.penalty_BR = take(commitment_BL1, region.ids_BR).squeeze(-1)
        quantised = Tokens(z_BLC + (nearest_BLC - z_BLC).detach())
        return self.decoder(replace(features, taps={taps[0]: quantised}, num_prefix=0), taps, region)
