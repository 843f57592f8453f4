"""A host's neck as a head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mkd_plugin.models.heads.base import Head, cls_and_patches
from mkd_plugin.registry import MODELS, build
from mkd_plugin.structures import RegionTokens, TokenFeatures, take


@MODELS.register_module()
class NeckHead(Head):
    """Wraps ``neck(tokens, ids_restore)`` that gives one prediction a patch, such as mmpretrain's ``MAEPretrainDecoder``.

    Such necks drop the cls token, so the region must be without it. The neck is tried on empty tokens when it is built.

    Args:
        in_width: Width of the student's tokens.
        out_width: Width of the target; the neck must predict it.
        grid: The student's grid.
        neck: The host's config.

    Raises:
        ValueError: The neck does not take the student's tokens, or does not give ``out_width`` values for each patch.
    """

    reaches_hidden = True
    predicts_cls = False

    def __init__(self, *, in_width: int, out_width: int, grid: tuple[int, int], neck: dict[str, Any]) -> None:
        super().__init__(in_width=in_width, out_width=out_width, grid=grid)
        self.neck = build(neck)
        self.reset_parameters()
        length = grid[0] * grid[1]
        try:
            with torch.no_grad():
                trial = self.neck(torch.zeros(1, 1 + length, in_width), torch.arange(length).unsqueeze(0))
        except RuntimeError as error:
            raise ValueError(
                f"{type(self.neck).__name__} does not take the student's tokens, (1, 1 + {length}, {in_width}) for one "
                f'image: {error}'
            ) from error
        if trial.shape != (1, length, out_width):
            raise ValueError(
                f'{type(self.neck).__name__} gives {tuple(trial.shape)} for one image; (1, {length}, {out_width}) is '
                "needed: the target's width for each patch."
            )

    def reset_parameters(self) -> None:
        """Let the neck draw new weights in its own way."""
        for module in self.neck.modules():
            if hasattr(module, 'reset_parameters'):
                module.reset_parameters()
            module.is_init = False
        if hasattr(self.neck, 'init_weights'):
            self.neck.init_weights()

    def forward(self, features: TokenFeatures, tap: str, region: RegionTokens) -> Tensor:
        """(B, R, out_width)."""
        tokens_BND = cls_and_patches(features, tap)
        if features.mask is None:  # all patches are there, in order
            ids_restore_BL = torch.arange(tokens_BND.shape[1] - 1, device=tokens_BND.device).expand(len(tokens_BND), -1)
        else:
            assert features.mask.ids_restore_BL is not None
            ids_restore_BL = features.mask.ids_restore_BL
        predictions_BLD = self.neck(tokens_BND, ids_restore_BL)
        return take(predictions_BLD, region.ids_BR)
