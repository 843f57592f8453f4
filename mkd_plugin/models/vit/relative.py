"""BEiT's relative position bias (shape legend: ``mkd_plugin/structures.py``)."""

from __future__ import annotations

import torch
from timm.layers.pos_embed_rel import gen_relative_position_index
from torch import Tensor, nn

__all__ = ['RelativePositionBias', 'table_length']


def table_length(grid: tuple[int, int]) -> int:
    """Entries of a head: one for each offset between two patches of the grid, then cls→patch, patch→cls and cls→cls."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3


class RelativePositionBias(nn.Module):
    """A learned number per head and offset between two tokens, added to the attention's logits; zero at first.

    The table has the layout of BEiT's, timm's and mmpretrain's checkpoints. A network has one for all blocks ('shared',
    in pre-training) or each block its own ('per_block', in fine-tuning).

    Args:
        grid: Patches per column and row.
        num_heads: Attention heads.
    """

    index_NN: Tensor

    def __init__(self, *, grid: tuple[int, int], num_heads: int) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.zeros(table_length(grid), num_heads))
        self.register_buffer('index_NN', gen_relative_position_index(grid, class_token=True), persistent=False)

    def reset_parameters(self) -> None:
        """No preference for any offset."""
        nn.init.zeros_(self.relative_position_bias_table)

    def forward(self) -> Tensor:
        """The bias, (1, H, N, N) for cls and the grid's patches."""
        length = self.index_NN.shape[0]
        bias_NNH = self.relative_position_bias_table[self.index_NN.flatten()].view(length, length, -1)
        return bias_NNH.permute(2, 0, 1).unsqueeze(0).contiguous()
