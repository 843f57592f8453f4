"""Strict checkpoint loading with actionable errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mkd_plugin.checkpoint.download import local_file
from mkd_plugin.checkpoint.formats import Converted, DetectedNetwork, find_network, strip_compile_prefix
from mkd_plugin.checkpoint.foundation import with_timm_names
from mkd_plugin.checkpoint.infer_arch import Grid, LoadableViT, grid_of_options, options_in_metadata
from mkd_plugin.checkpoint.read import CheckpointError, read_checkpoint, refusing, weights_of
from mkd_plugin.checkpoint.report import LoadReport, check_architecture, check_coverage, check_parts
from mkd_plugin.checkpoint.resize import resize_for_network

# Known tensors that a network may lack: a decoder, CLIP's projection, the embedding of masked patches.
OPTIONAL = ('decoder.', 'proj.', 'mask_token')


def load_backbone(
    network: LoadableViT,
    path: str | Path,
    *,
    prefix: str | None = None,
    allow_missing: Sequence[str] = (),
    grid: Grid | None = None,
) -> LoadReport:
    """Load a ViT from a checkpoint of any format in ``mkd_plugin.checkpoint.formats``, detected from its names.

    Position tables are resized to the network's grid as in timm, a relative table shared by all blocks is copied to every
    block if the network has one in each, and tensors are converted to the network's dtype.

    Args:
        network: The network to load.
        path: A ``.pth``, ``.pt`` or ``.safetensors`` file, OpenAI's TorchScript archive, or a folder written by Hugging
            Face's ``save_pretrained``; or the web address of a file, which is downloaded once.
        prefix: Prefix of the network's names in the file. By default the student is loaded; the teacher of a stage is
            under ``teachers.<name>.network.``.
        allow_missing: Names or patterns (such as '*.rel_pos_bias.*') of tensors that need not be in the file, besides those
            that the network's class initialises itself.
        grid: Patches per column and per row of the file's position tables. Only needed if the file does not say it and the
            grid is not square.

    Returns:
        The report; its line is logged.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file cannot be read, has no known format, does not cover the network, or holds a network with
            more blocks, other heads, or parts that this one lacks. The network is unchanged then.
    """
    report = fill_network(
        network,
        read_checkpoint(local_file(path), lazy=True),
        path,
        prefix=prefix,
        allow_missing=allow_missing,
        grid=grid,
    )
    print_log(report.line(), logger='current')
    return report


def fill_network(
    network: LoadableViT,
    checkpoint: dict[str, Any],
    source: str | Path,
    *,
    prefix: str | None = None,
    allow_missing: Sequence[str] = (),
    grid: Grid | None = None,
) -> LoadReport:
    """Do the work of :func:`load_backbone` for a checkpoint that was already read; ``source`` appears in messages."""
    weights = strip_compile_prefix(weights_of(checkpoint, source))
    with refusing(source):
        found, converted = convert_weights(weights, source, prefix)
        metadata = options_in_metadata(checkpoint) if found.prefix in ('', 'backbone.') else {}
        own = network.state_dict()
        report = LoadReport(str(source), found.format.title, found.prefix, into=type(network).__name__)
        check_architecture(report, network, converted.tensors, metadata)
        resized = resize_for_network(converted.tensors, network, grid or grid_of_options(metadata))
    check_floating(resized, own, source)
    compare_tensors(converted, resized, own, report)
    check_coverage(report, network, resized, own, weights, allow_missing)
    check_parts(report, network, converted.tensors)
    converted.tensors.clear()  # so that concatenated tensors are freed one by one
    with torch.no_grad():
        for name in report.loaded:
            own[name].copy_(resized.pop(name))
    return report


def convert_weights(
    weights: Mapping[str, Tensor], source: str | Path, prefix: str | None = None
) -> tuple[DetectedNetwork, Converted]:
    """Detect the network in a file's state dict and convert its names to ours; all other tensors count as dropped.

    Raises:
        CheckpointError: The format is unknown, or there are several networks and no default among them.
    """
    if prefix and not prefix.endswith('.'):
        prefix += '.'  # as in the hosts, the dot is optional
    chosen = {name: tensor for name, tensor in weights.items() if name.startswith(prefix or '')}
    renamed, title = with_timm_names(chosen, source)
    if title is not None:
        weights, prefix = renamed, None
    found = find_network(weights, source, prefix)
    if title is not None:
        found = found._replace(format=replace(found.format, title=title))
    converted = found.format.to_ours(found.inside(weights))
    converted.dropped += [name for name in weights if not name.startswith(found.prefix)]
    return found, converted


def check_floating(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str | Path) -> None:
    """Raise CheckpointError if a file has complex, integer, bool or quantised numbers where a network has real ones.

    A copy would drop imaginary parts and scales without a word. The tensors have the network's names.
    """
    wrong = [
        f'{name} is {str(tensor.dtype).removeprefix("torch.")}'
        for name, tensor in tensors.items()
        if name in own and own[name].is_floating_point() and not tensor.is_floating_point()
    ]
    if wrong:
        raise CheckpointError(
            f'{source} holds {len(wrong)} weights that are no floating-point numbers: {"; ".join(wrong[:4])}. Convert them '
            'to float32 with the program that wrote the file.'
        )


def compare_tensors(
    converted: Converted, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], report: LoadReport
) -> None:
    """Fill the report: which tensors of the file, after resizing, fit which tensors of the network."""
    fitting = [name for name in own if name in tensors and tensors[name].shape == own[name].shape]
    report.matched = [name for name in fitting if tensors[name] is converted.tensors.get(name)]
    report.resized = [name for name in fitting if tensors[name] is not converted.tensors.get(name)]
    report.missing = [name for name in own if name not in fitting]
    rest = [name for name in tensors if name not in own]
    report.dropped = [*converted.dropped, *(name for name in rest if name.startswith(OPTIONAL))]
    report.unexpected = [*converted.unknown, *(name for name in rest if not name.startswith(OPTIONAL))]
    report.converted = [name for name in fitting if tensors[name].dtype != own[name].dtype]
    conversions = {f'{tensors[name].dtype} → {own[name].dtype}' for name in report.converted}
    report.dtypes = sorted(conversion.replace('torch.', '') for conversion in conversions)


def load_module(
    network: nn.Module,
    path: str,
    *,
    prefix: str = '',
    adapt: Callable[[Mapping[str, Tensor], nn.Module], dict[str, Tensor]] | None = None,
) -> None:
    """Load a module from a file that uses the module's own names; log a line.

    Args:
        network: The module to load.
        path: The file.
        prefix: Prefix of the module's names in the file. ``module.`` is removed by default.
        adapt: Renames or resizes the file's tensors for the module.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: A tensor of the module is missing in the file or has another shape there.
    """
    title = type(network).__name__
    weights: dict[str, Any] = {
        name.removeprefix('module.').removeprefix(prefix): value
        for name, value in weights_of(read_checkpoint(local_file(path)), path).items()
        if name.removeprefix('module.').startswith(prefix)
    }
    if adapt is not None:
        try:
            weights = adapt(weights, network)
        except (KeyError, IndexError, AttributeError, RuntimeError) as error:  # it assumes its own model's names
            raise CheckpointError(
                f'{path} does not cover {title}: it lacks the names of this model ({error}).'
            ) from error
    own = network.state_dict()
    check_floating(weights, own, path)
    fitting = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    missing, unused = [name for name in own if name not in fitting], [name for name in weights if name not in own]
    if missing:
        raise CheckpointError(
            f'{path} does not cover {title}: {len(missing)} of {len(own)} tensors are missing or have another shape, first '
            f'{missing[:4]}. The file has {list(weights)[:4]}. Is it a file of this model?'
        )
    network.load_state_dict(fitting)
    report = LoadReport(path, matched=list(fitting), unexpected=unused, into=title)
    print_log(report.line(), logger='current')
