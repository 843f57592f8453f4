"""Heads without interaction between tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from mkd_plugin.models.protocols import Head
from mkd_plugin.models.vit.block import MAE_INIT, Initialization
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import QueryKey, RegionTokens, TokenFeatures


@MODELS.register_module()
class NoHead(Head):
    """Compares the student's features directly; they need the target's width (for relations, its number of heads).

    Raises:
        ValueError: The target has another width, or another number of heads.
    """

    kinds = ('tokens', 'relation')

    def __init__(self, *, in_width: int, out_width: int, grid: tuple[int, int]) -> None:
        super().__init__(in_width=in_width, out_width=out_width, grid=grid)
        if in_width != out_width:
            raise ValueError(
                f'Without a head, student and target need the same number of channels (for relations: attention heads), '
                f'but the student has {in_width} and the target {out_width}. Add a head; for relations, use networks with '
                'the same number of heads, or RegroupedRelations.'
            )

    def forward(self, features: TokenFeatures, taps: Sequence[str], region: RegionTokens) -> Tensor:
        """Read the features, (B, R, D), or (B, H, R, R) for relations."""
        return features.select(taps[0], region)


@MODELS.register_module()
class LinearHead(Head):
    """Linear layer.

    Args:
        initialization: Distribution of the initial weights; the objective sets the student's.
        norm: Add a LayerNorm before the layer (Proteus).
    """

    def __init__(
        self,
        *,
        in_width: int,
        out_width: int,
        grid: tuple[int, int],
        initialization: Initialization = MAE_INIT,
        norm: bool = False,
    ) -> None:
        super().__init__(in_width=in_width, out_width=out_width, grid=grid)
        self.initialization = initialization
        self.norm: nn.Module = nn.LayerNorm(in_width) if norm else nn.Identity()
        self.linear = nn.Linear(in_width, out_width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights."""
        self.initialization.init_linears(self)

    def forward(self, features: TokenFeatures, taps: Sequence[str], region: RegionTokens) -> Tensor:
        """Compute predictions, (B, R, out_width)."""
        return self.linear(self.norm(features.select(taps[0], region)))


@MODELS.register_module()
class ProjectorHead(Head):
    """DMAE's projector: an MLP with GELU, hidden layers of the target's width, and PyTorch's default initialisation.

    Args:
        num_layers: Number of linear layers; 2 is the paper's best (84.0; 1: 83.6, 3: 83.8).

    Raises:
        ValueError: ``num_layers`` is not positive.
    """

    def __init__(self, *, in_width: int, out_width: int, grid: tuple[int, int], num_layers: int = 2) -> None:
        super().__init__(in_width=in_width, out_width=out_width, grid=grid)
        if num_layers < 1:
            raise ValueError(f'num_layers={num_layers}: it must be at least 1.')
        layers: list[nn.Module] = [nn.Linear(in_width, out_width)]
        for _ in range(num_layers - 1):
            layers += [nn.GELU(), nn.Linear(out_width, out_width)]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: TokenFeatures, taps: Sequence[str], region: RegionTokens) -> Tensor:
        """Compute predictions, (B, R, out_width)."""
        return self.layers(features.select(taps[0], region))


@MODELS.register_module()
class RegroupedRelations(Head):
    """Splits the student's queries and keys into the teacher's number of heads before comparing relations (MiniLM v2).

    Use it if student and teacher differ in their number of heads. There are no parameters: head j of the teacher is
    compared with the relation over the j-th group of the student's channels. Use the taps ``logit:i``, which divide by √K,
    because unscaled relations over different numbers of channels differ in scale.

    Raises:
        ValueError: At the first batch, if the student's width is not a multiple of the teacher's number of heads.
    """

    kinds = ('relation',)

    def forward(self, features: TokenFeatures, taps: Sequence[str], region: RegionTokens) -> Tensor:
        """Compute the student's relations, (B, teacher's H, R, R)."""
        relation = features.taps[taps[0]]
        assert isinstance(relation, QueryKey)
        return replace(features, taps={taps[0]: relation.regroup(self.out_width)}).select(taps[0], region)
