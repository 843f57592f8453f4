"""Why a state dict is not of a network: said by name, with both numbers, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mkd_plugin.checkpoint.anatomy import FEATURES, anatomy, features_of
from mkd_plugin.checkpoint.formats import Found
from mkd_plugin.checkpoint.report import LoadReport, shorten

if TYPE_CHECKING:
    from mkd_plugin.models.vit import VisionTransformer

__all__ = ['check_architecture', 'check_coverage', 'check_features']


def differences(network: VisionTransformer, tensors: Mapping[str, Tensor]) -> list[str]:
    """Sizes that differ, each as 'width 768 there and 1024 here'."""
    there, here = anatomy(tensors), anatomy(network.state_dict())
    names = dict(depth='blocks', mlp='hidden width', heads='attention heads')
    return [
        f'{names.get(name, name)} {there[name]} there and {here[name]} here'
        for name in here
        if name in there and there[name] != here[name]
    ]


def check_architecture(
    source: str | Path,
    found: Found,
    network: VisionTransformer,
    tensors: Mapping[str, Tensor],
    stated: Mapping[str, Any],
) -> None:
    """Raise ValueError if the file is of a network of other sizes, or (where it says so) with another number of heads."""
    different = differences(network, tensors)
    if different:
        raise ValueError(
            f'{source} ({found.format.title}) holds another network than this one: {"; ".join(different)}. Check arch, '
            'patch_size and in_channels, or whether it is the right file.'
        )
    own = network.arch.num_heads
    heads = stated.get('num_heads', stated.get('arch', {}).get('num_heads', own))
    if heads != own:
        raise ValueError(
            f'{source} holds a network of {heads} attention heads, this one has {own}: its tensors would fit, and mean '
            'something else. Check arch.'
        )


def check_features(report: LoadReport, network: VisionTransformer, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError if the file's network has parts that this one lacks: without them it computes something else."""
    lacking = features_of(tensors) - features_of(network.state_dict())
    if network.relative_position == 'per_block':
        lacking -= {'a relative position bias shared by all blocks'}  # it was given to every block
    if lacking:
        options = ', '.join(FEATURES[name][1] for name in sorted(lacking))
        raise ValueError(
            f'{report.source} ({report.format}) is of a network with {" and ".join(sorted(lacking))}, which this one lacks: it '
            f'would compute something else. Build it with {options}.'
        )


def check_coverage(
    report: LoadReport,
    network: VisionTransformer,
    tensors: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    allow_missing: Sequence[str],
) -> None:
    """Raise ValueError unless every tensor of the network was found with its shape, or may be new: by name, or by a pattern
    such as '*.rel_pos_bias.*'."""
    may_be_new = (*allow_missing, *getattr(network, 'may_be_new', ()))
    uncovered = [name for name in report.missing if not any(fnmatchcase(name, new) for new in may_be_new)]
    if not uncovered:
        return
    there = {name: tuple(tensors[name].shape) for name in uncovered if name in tensors}
    reasons = [f'{name} is {shape} there and {tuple(own[name].shape)} here' for name, shape in list(there.items())[:4]]
    absent = [name for name in uncovered if name not in there]
    if absent:
        reasons.append(f'absent: {shorten(absent)}')
    if {'ln1.weight', 'ln1.bias'} == set(uncovered) and 'ln2.weight' in tensors:
        reasons.append(
            'it was fine-tuned with a norm after mean pooling, and has none for tokens: '
            "read the tap 'block:-1', with allow_missing=('ln1.weight', 'ln1.bias')"
        )
    arch = network.arch
    raise ValueError(
        f'{report.source} ({report.format}) does not cover the network (width {arch.width}, {arch.depth} blocks, patch '
        f"{network.patch_size}; looked under the prefix '{report.prefix}'): {len(uncovered)} of {len(own)} tensors are not "
        f'there. {"; ".join(reasons)}. The file has: {shorten(list(weights))}. '
        "Check arch, patch_size and prefix (a stage's teacher is under 'teachers.<name>.network.')."
    )
