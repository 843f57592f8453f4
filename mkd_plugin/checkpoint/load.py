"""Strict loading of a ViT from any known format, with a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from mmengine.logging import print_log
from torch import Tensor

from mkd_plugin.checkpoint.formats import Converted, Found, find_network, without_wrapper
from mkd_plugin.checkpoint.infer_arch import stated_grid, stated_options
from mkd_plugin.checkpoint.read import read_checkpoint, weights_of
from mkd_plugin.checkpoint.report import LoadReport, check_architecture, check_coverage, check_features
from mkd_plugin.checkpoint.resize import Fitted, fit

if TYPE_CHECKING:
    from mkd_plugin.models.vit import VisionTransformer
from collections.abc import Callable

from torch import nn

# Parts of a known network that need not be in ours: a decoder, CLIP's projection, what pre-training put in hidden places.
NO_PART_OF_IT = ('decoder.', 'proj.', 'mask_token')


def load_backbone(
    network: VisionTransformer,
    path: str | Path,
    *,
    prefix: str | None = None,
    allow_missing: Sequence[str] = (),
    grid: tuple[int, int] | None = None,
) -> LoadReport:
    """Load a ViT from a checkpoint of any known format (``mkd_plugin.checkpoint.formats``), which is told by its names.

    Tables of positions for another grid are resized as timm does it; a relative table that all blocks share is repeated for
    a network with one in every block; numbers are converted to the network's.

    Args:
        network: The network to fill.
        path: The file (``.pth``, ``.pt``, ``.safetensors``, OpenAI's TorchScript archive), or a folder that Hugging Face's
            ``save_pretrained`` wrote.
        prefix: Where the network is in the file. By itself the student is found; a stage's teacher is under
            ``teachers.<name>.network.``.
        allow_missing: Names that need not be in the file, beside those the network's class calls new; or patterns, as
            '*.rel_pos_bias.*'.
        grid: Patches per column and row that the file's positions are for. Only needed where neither the file says it nor
            a square does.

    Returns:
        The report, which is also logged.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read or is of no known format; it does not cover the network, or is of one with more
            blocks, other heads, or parts that this one lacks. Nothing has been loaded then.
    """
    report = fill_network(
        network, read_checkpoint(path, lazy=True), path, prefix=prefix, allow_missing=allow_missing, grid=grid
    )
    print_log(str(report), logger='current')
    return report


def fill_network(
    network: VisionTransformer,
    checkpoint: dict[str, Any],
    source: str | Path,
    *,
    prefix: str | None = None,
    allow_missing: Sequence[str] = (),
    grid: tuple[int, int] | None = None,
) -> LoadReport:
    """:func:`load_backbone` of a checkpoint that has been read; ``source`` is what messages call it."""
    weights = without_wrapper(weights_of(checkpoint, source))
    found, converted = convert_weights(weights, source, prefix)
    stated = stated_options(checkpoint) if found.prefix in ('', 'backbone.') else {}
    own = network.state_dict()
    check_architecture(source, found, network, converted.tensors, stated)
    fitted = fit(converted.tensors, network, grid or stated_grid(stated))
    report = sort_out(converted, fitted, own, LoadReport(str(source), found.format.title, found.prefix))
    check_coverage(report, network, fitted.tensors, own, weights, allow_missing)
    check_features(report, network, converted.tensors)
    converted.tensors.clear()  # so that tensors which had to be put together are freed one by one
    with torch.no_grad():
        for name in report.loaded:
            own[name].copy_(fitted.tensors.pop(name))
    return report


def convert_weights(
    weights: Mapping[str, Tensor], source: str | Path, prefix: str | None = None
) -> tuple[Found, Converted]:
    """Find the network in a file's state dict and give its tensors our names. What lies elsewhere counts as dropped.

    Raises:
        ValueError: No format is recognised, or there are several networks and none is the obvious one.
    """
    if prefix and not prefix.endswith('.'):
        prefix += '.'  # the hosts take it without the dot as well
    found = find_network(weights, source, prefix)
    place = found.prefix
    converted = found.format.to_ours(
        {name[len(place) :]: tensor for name, tensor in weights.items() if name.startswith(place)}
    )
    converted.dropped += [name for name in weights if not name.startswith(place)]
    return found, converted


def sort_out(converted: Converted, fitted: Fitted, own: Mapping[str, Tensor], report: LoadReport) -> LoadReport:
    """Fill the report: which tensors of both sides belong together."""
    tensors = fitted.tensors
    fitting = [name for name in own if name in tensors and tensors[name].shape == own[name].shape]
    report.matched = [name for name in fitting if name not in fitted.resized]
    report.resized = [name for name in fitting if name in fitted.resized]
    report.missing = [name for name in own if name not in fitting]
    other = [name for name in tensors if name not in own]
    report.dropped = [*converted.dropped, *(name for name in other if name.startswith(NO_PART_OF_IT))]
    report.unexpected = [*converted.unknown, *(name for name in other if not name.startswith(NO_PART_OF_IT))]
    report.converted = [name for name in fitting if tensors[name].dtype != own[name].dtype]
    numbers = {f'{short(tensors[name].dtype)} → {short(own[name].dtype)}' for name in report.converted}
    report.numbers = sorted(numbers)
    return report


def short(dtype: torch.dtype) -> str:
    """A number format's name without torch's."""
    return str(dtype).removeprefix('torch.')


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
