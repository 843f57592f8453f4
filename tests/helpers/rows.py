"""Digits configs of other papers' methods, shrunk."""

from __future__ import annotations

from typing import Any

import torch

import mkd_plugin
from helpers.networks import scatter_weights
from mkd_plugin.models import MaskedDistiller
from mkd_plugin.models.protocols import Progress
from mkd_plugin.registry import MODELS

TINY = dict(width=24, depth=2, num_heads=2)


def tiny(name: str, taps: dict | None = None, teacher: dict | None = None, **model: Any) -> MaskedDistiller:
    """The network of a digits config with two blocks of width 24, in float64, with scattered weights.

    Args:
        name: The config.
        taps: Objective → options to replace.
        teacher: Sizes of frozen teachers that differ from the student's.
        model: Options of the model to replace, with dots.
    """
    cfg = mkd_plugin.get_config(name)
    cfg.model.backbone.arch = TINY
    cfg.merge_from_dict({f'model.{key}': value for key, value in model.items()})
    for name, change in (taps or {}).items():
        cfg.model.objectives[name].update(change)
    for frozen in cfg.model.teachers.values():
        if 'arch' in frozen:
            frozen.update(arch={**TINY, **(teacher or {})})
    torch.manual_seed(0)
    distiller = MODELS.build({**cfg.model, 'data_preprocessor': cfg.data_preprocessor}).double()
    distiller.begin_training(Progress(0, 10))
    return scatter_weights(distiller)
