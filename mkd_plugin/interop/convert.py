"""Converting a checkpoint file: read, sort out, run against the other libraries, and only then write."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from mkd_plugin.checkpoint.formats import Found, without_wrapper
from mkd_plugin.checkpoint.infer_arch import network_options, stated_options
from mkd_plugin.checkpoint.load import convert_weights, fill_network
from mkd_plugin.checkpoint.read import provenance_of, read_checkpoint, weights_of
from mkd_plugin.checkpoint.releases import Release
from mkd_plugin.checkpoint.report import LoadReport
from mkd_plugin.checkpoint.resize import resize_positions
from mkd_plugin.checkpoint.write import sha256_of, write_weights
from mkd_plugin.interop.export import LIMIT, build_filled, export_mae_with_decoder, export_weights, largest_error
from mkd_plugin.interop.libraries import KINDS, Kind, features_of_options
from mkd_plugin.interop.libraries.huggingface import config_of
from mkd_plugin.models.vit import VisionTransformer
from mkd_plugin.version import __version__

PARTS = ('student', 'teacher', 'decoder')


@dataclass
class Conversion:
    """What a conversion did.

    Attributes:
        report: What became of every tensor of the source.
        options: Of the network that was written.
        checks: What was run against what: largest error, or None and why it was not run.
        left_out: Tensors of ours that the target has no use for.
    """

    report: LoadReport
    options: dict[str, Any]
    checks: list[tuple[str, float | None]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def convert_checkpoint(
    source: str | Path,
    destination: str | Path,
    target: str,
    *,
    part: str = 'student',
    prefix: str | None = None,
    img_size: int | tuple[int, int] | None = None,
    release: Release | None = None,
    options: Mapping[str, Any] | None = None,
    objective: str = 'pixel',
) -> Conversion:
    """Convert a file, check the outcome, write it.

    Args:
        source: A file or folder of any known format.
        destination: What to write. ``.safetensors``, or else as ``torch.save`` does; for 'hf' a name without a suffix
            becomes a folder with ``config.json``.
        target: 'mkd', 'mmpretrain', 'timm', 'hf', 'mae' or 'openclip'.
        part: Of our own pre-training checkpoints 'student' or 'teacher'; 'decoder' takes the student with its decoder, from
            or to MAE's and dBOT's formats.
        prefix: Where the network is in the source, if there are several.
        img_size: Resize positions for images of this size.
        release: Which release the source is of: its options and pixel statistics are taken.
        options: Options of the network that are known, above those that the file states.
        objective: Under which objective's name a decoder is written in our format.

    Raises:
        FileNotFoundError: There is no such source.
        ValueError: The source cannot be read or sorted out, the target cannot have the network, or outputs differ by more
            than 1e-4 of their largest magnitude. Nothing has been written then.
    """
    if part not in PARTS:
        raise ValueError(f"part='{part}': use one of {list(PARTS)}.")
    checkpoint = read_checkpoint(source)
    weights = without_wrapper(weights_of(checkpoint, source))
    if part == 'teacher' and prefix is None:
        prefix = find_teacher(weights, source)
    if prefix is None and release is not None:
        prefix = release.prefix
    found, converted = convert_weights(weights, source, prefix)
    known = {**stated_options(checkpoint), **((release and release.network) or {}), **(options or {})}
    network = VisionTransformer(**network_options(converted.tensors, known))
    done = Conversion(fill_network(network, checkpoint, source, prefix=found.prefix), network.options)
    check_source(done, network, found, weights)
    decoder = find_decoder(weights, converted.tensors, source) if part == 'decoder' else {}
    if img_size is not None:
        old_grid = network.grid
        network = VisionTransformer(**{**network.options, 'img_size': img_size})
        done.report = fill_network(network, checkpoint, source, prefix=found.prefix, grid=old_grid)
        done.options = network.options
        if decoder:
            decoder['pos_embed'] = resize_positions(decoder['pos_embed'], old_grid, network.grid)
    about = provenance(Path(source), found, checkpoint, done.options, release)
    write_converted(done, Path(destination), target, network, decoder, objective, about)
    return done


def find_teacher(weights: Mapping[str, Tensor], source: str | Path) -> str:
    """Where a pre-training checkpoint's teacher is. Raises ValueError if it has none, or several."""
    found = sorted({match[0] for name in weights if (match := re.match(r'teachers\.\w+\.network\.', name))})
    if len(found) != 1:
        raise ValueError(
            f"{source}: part='teacher' needs one teacher in the file, and there are {found}. Give prefix=…."
        )
    return found[0]


def find_decoder(weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """The decoder beside the encoder, by the names of our head. Raises ValueError if there is none, or several."""
    inside = {name.removeprefix('decoder.'): tensor for name, tensor in tensors.items() if name.startswith('decoder.')}
    if inside:
        return inside
    heads: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        if match := re.fullmatch(r'(.*objectives\.\w+\.heads\.0\.)(.+)', name):
            heads.setdefault(match[1], {})[match[2]] = tensor
    decoders = {
        place: head for place, head in heads.items() if {'mask_token', 'pos_embed', 'predict.weight'} <= set(head)
    }
    if len(decoders) != 1:
        raise ValueError(f"{source}: part='decoder' needs one decoder in the file, and there are {list(decoders)}.")
    return next(iter(decoders.values()))


def check_source(done: Conversion, network: VisionTransformer, found: Found, weights: Mapping[str, Tensor]) -> None:
    """Run the source's own class, if its library is installed. Raises ValueError if its output is another."""
    features = features_of_options(network.options)
    kinds = [kind for kind in KINDS if kind.format is found.format and kind.suits(features)]
    if not kinds:
        done.checks.append((f'source: no library here has a class with the names of {found.format.title}', None))
        return
    inside = {
        name[len(found.prefix) :]: tensor.float() for name, tensor in weights.items() if name.startswith(found.prefix)
    }
    check(done, 'source', kinds[0], network, inside)


def check(done: Conversion, side: str, kind: Kind, network: VisionTransformer, weights: Mapping[str, Tensor]) -> None:
    """Run another library's network beside ours. Raises ValueError if the outputs differ."""
    title = f'{side}: {kind.package} {kind.title}'
    if not kind.installed:
        done.checks.append((f'{title} (not installed)', None))
        return
    error = largest_error(kind, build_filled(kind, network.options, weights), network)
    done.checks.append((title, error))
    if not error <= LIMIT:
        raise ValueError(
            f'{title} gives another output than ours: they differ by {error:.1e} of the largest magnitude, {LIMIT:.0e} is '
            'allowed. Nothing was written. Options that names and shapes do not tell may be wrong: num_heads, activation, '
            f'norm_eps (taken: {network.options}).'
        )


def provenance(
    source: Path, found: Found, checkpoint: Mapping[str, Any], options: Mapping[str, Any], release: Release | None
) -> dict[str, Any]:
    """What a converted file says about itself."""
    before = provenance_of(checkpoint)
    about: dict[str, Any] = {
        'version': __version__,
        'backbone': dict(options),
        'source': {
            'file': source.name,
            'sha256': sha256_of(source.expanduser()),
            'format': found.format.title,
            'prefix': found.prefix,
        },
    }
    statistics = release and {'pixel_mean': list(release.pixel_mean), 'pixel_std': list(release.pixel_std)}
    known = statistics or {name: before[name] for name in ('pixel_mean', 'pixel_std') if name in before}
    return {**about, **known}


def write_converted(
    done: Conversion,
    path: Path,
    target: str,
    network: VisionTransformer,
    decoder: Mapping[str, Tensor],
    objective: str,
    about: Mapping[str, Any],
) -> None:
    """Check the target's network against ours, then write."""
    tensors = dict(network.state_dict())
    if target == 'mkd':
        named = {f'backbone.{name}': tensor for name, tensor in tensors.items()}
        head = {f'objectives.{objective}.heads.0.{name}': tensor for name, tensor in decoder.items()}
        write_weights(path, {**named, **head}, about)
        return
    kind, exported, done.left_out = export_weights(tensors, network.options, target)
    check(done, 'target', kind, network, exported)
    if decoder:
        if target != 'mae':
            raise ValueError(f"part='decoder' can be written as 'mae' or 'mkd', not as '{target}'.")
        exported = export_mae_with_decoder(tensors, decoder, network.options)
    prefix = 'backbone.' if target == 'mmpretrain' else ''
    write_weights(
        path,
        {prefix + name: tensor for name, tensor in exported.items()},
        about,
        entry='model' if target == 'mae' else 'state_dict',
        config=None if kind.config is None else config_of(kind.config, network.options),
    )
