"""Strict loading of a network that is not our ViT: a host's generator, a model of timm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from mkd_plugin.checkpoint.read import read_checkpoint, weights_of

__all__ = ['load_module']


def load_module(
    network: nn.Module,
    path: str,
    *,
    prefix: str = '',
    adapt: Callable[[Mapping[str, Tensor], nn.Module], dict[str, Tensor]] | None = None,
) -> None:
    """Fill a network with a file that has its own names.

    Args:
        network: The network to fill.
        path: The file; what it has beyond the network is dropped, and said.
        prefix: Where the network is in the file. ``module.`` is left out by itself.
        adapt: Renames or resizes the file's tensors for the network.

    Raises:
        ValueError: A tensor of the network is not in the file, or has another shape there.
    """
    name = type(network).__name__
    weights: dict[str, Any] = {
        key.removeprefix('module.').removeprefix(prefix): value
        for key, value in weights_of(read_checkpoint(path), path).items()
        if key.removeprefix('module.').startswith(prefix)
    }
    if adapt is not None:
        try:
            weights = adapt(weights, network)
        except (
            KeyError,
            IndexError,
            AttributeError,
            RuntimeError,
        ) as error:  # it takes its own model's names for granted
            raise ValueError(f'{path} does not cover {name}: it has not the names of this model ({error}).') from error
    own = network.state_dict()
    fitting = {key: value for key, value in weights.items() if key in own and own[key].shape == value.shape}
    missing, dropped = [key for key in own if key not in fitting], [key for key in weights if key not in own]
    if missing:
        raise ValueError(
            f'{path} does not cover {name}: {len(missing)} of {len(own)} tensors are not there or have another shape, first '
            f'{missing[:4]}. The file has {list(weights)[:4]}. Is it a file of this model?'
        )
    network.load_state_dict(fitting)
    print_log(f'loaded {path} into {name}: {len(fitting)} tensors; not used: {dropped or "none"}', logger='current')
