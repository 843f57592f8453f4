"""Heads that treat every token alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from mkd_plugin.models.protocols import Head
from mkd_plugin.models.vit.block import init_linears
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import QueryKey, RegionTokens, TokenFeatures


@MODELS.register_module()
class NoHead(Head):
    """The student's features themselves, for targets of the same width and for relations of as many heads.

    Raises:
        ValueError: The target has another width, or another number of heads.
    """

    kinds = ('tokens', 'relation')

    def __init__(self, *, in_width: int, out_width: int, grid: tuple[int, int]) -> None:
        super().__init__(in_width=in_width, out_width=out_width, grid=grid)
        if in_width != out_width:
            raise ValueError(
                f'Without a head the student must have what the target has, but it has {in_width} channels (for relations: '
                f'attention heads) and the target {out_width}. Give features a head; relations need networks with as many '
                'heads.'
            )

    def forward(self, features: TokenFeatures, taps: Sequence[str], region: RegionTokens) -> Tensor:
        """(B, R, D), or (B, H, R, R) for relations."""
        return features.select(taps[0], region)


@MODELS.register_module()
class LinearHead(Head):
    """One linear layer, xavier-uniform."""

    def __init__(self, *, in_width: int, out_width: int, grid: tuple[int, int]) -> None:
        super().__init__(in_width=in_width, out_width=out_width, grid=grid)
        self.linear = nn.Linear(in_width, out_width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights."""
        init_linears(self)

    def forward(self, features: TokenFeatures, taps: Sequence[str], region: RegionTokens) -> Tensor:
        """(B, R, out_width)."""
        return self.linear(features.select(taps[0], region))


@MODELS.register_module()
class ProjectorHead(Head):
    """DMAE's projector: an MLP as wide as the target, with GELU and PyTorch's default initialisation.

    Args:
        in_width: Width of the student's tokens.
        out_width: Width of the target, and of the hidden layers.
        grid: The student's grid.
        num_layers: Linear layers; 2 is the paper's best (84.0; 1: 83.6, 3: 83.8).

    Raises:
        ValueError: ``num_layers`` is not positive.
    """

    def __init__(self, *, in_width: int, out_width: int, grid: tuple[int, int], num_layers: int = 2) -> None:
        super().__init__(in_width=in_width, out_width=out_width, grid=grid)
        if num_layers < 1:
            raise ValueError(f'num_layers={num_layers}: a projector has at least one layer.')
        layers: list[nn.Module] = [nn.Linear(in_width, out_width)]
        for _ in range(num_layers - 1):
            layers += [nn.GELU(), nn.Linear(out_width, out_width)]
        self.layers = nn.Sequential(*layers)

    def reset_parameters(self) -> None:
        """Draw new weights."""
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()

    def forward(self, features: TokenFeatures, taps: Sequence[str], region: RegionTokens) -> Tensor:
        """(B, R, out_width)."""
        return self.layers(features.select(taps[0], region))


@MODELS.register_module()
class RegroupedRelations(Head):
    """The student's relations with its queries and keys cut into as many heads as the teacher has (as MiniLM v2 does).

    For a student whose number of heads differs from the teacher's. Nothing is learned: head j of the teacher is compared
    with the relation over the j-th group of the student's channels. Relations over other numbers of channels differ in
    scale; use the taps ``logit:i``, which divide by √K on both sides, with it.

    Raises:
        ValueError: When the first batch comes: the student's width is not a multiple of the teacher's number of heads.
    """

    kinds = ('relation',)

    def forward(self, features: TokenFeatures, taps: Sequence[str], region: RegionTokens) -> Tensor:
        """(B, H of the teacher, R, R)."""
        relation = features.taps[taps[0]]
        assert isinstance(relation, QueryKey)
        return replace(features, taps={taps[0]: relation.regroup(self.out_width)}).select(taps[0], region)
