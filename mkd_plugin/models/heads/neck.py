"""A host's neck as a head."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mkd_plugin.models.heads.base import Head
from mkd_plugin.registry import MODELS, build
from mkd_plugin.structures import RegionTokens, TokenFeatures, take

__all__ = ['NeckHead']


@MODELS.register_module()
class NeckHead(Head):
    """Wraps ``neck(tokens, ids_restore)`` that gives one prediction a patch, such as mmpretrain's ``MAEPretrainDecoder``.

    Such necks drop the cls token, so the region must be without it. Their weights are kept between stages only if they
    offer ``init_weights``, which is called to draw new ones.

    Args:
        in_width: Width of the student's tokens.
        out_width: Width of the target; the neck must predict it.
        grid: The student's grid.
        neck: The host's config.

    Raises:
        ValueError: A region with cls was asked for (raised when the head is first used).
    """

    reaches_hidden = True

    def __init__(self, *, in_width: int, out_width: int, grid: tuple[int, int], neck: dict[str, Any]) -> None:
        super().__init__(in_width=in_width, out_width=out_width, grid=grid)
        self.neck = build(neck)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Let the neck draw new weights in its own way."""
        for module in self.neck.modules():
            if hasattr(module, 'reset_parameters'):
                module.reset_parameters()
            module.is_init = False
        self.neck.init_weights()

    def forward(self, features: TokenFeatures, tap: str, region: RegionTokens) -> Tensor:
        """(B, R, out_width)."""
        assert features.mask is not None
        predictions_BLD = self.neck(features.tokens(tap), features.mask.ids_restore_BL)
        if region.cls or predictions_BLD.shape[-1] != self.out_width:
            raise ValueError(
                f'{type(self.neck).__name__} predicts {predictions_BLD.shape[-1]} values a patch and no cls token; the '
                f'target has {self.out_width} and the region {"includes" if region.cls else "has no"} cls.'
            )
        return take(predictions_BLD, region.ids_BR)
