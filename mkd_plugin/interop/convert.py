"""Convert a checkpoint file to another format; the result is written only if both networks give the same output."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from mkd_plugin.checkpoint.formats import FORMATS, DetectedNetwork, strip_compile_prefix
from mkd_plugin.checkpoint.infer_arch import check_claims, infer_options, options_in_metadata
from mkd_plugin.checkpoint.load import check_floating, convert_weights, fill_network
from mkd_plugin.checkpoint.read import provenance_of, read_checkpoint, refusing, weights_of
from mkd_plugin.checkpoint.releases import Release
from mkd_plugin.checkpoint.report import LoadReport
from mkd_plugin.checkpoint.resize import resize_positions
from mkd_plugin.checkpoint.write import write_weights
from mkd_plugin.interop.export import (
    FOREIGN_CLASSES,
    PRETRAINING_ONLY,
    TOLERANCE,
    ForeignClass,
    build_filled,
    export_weights,
    features_of,
    largest_error,
)
from mkd_plugin.interop.folders import folder_files
from mkd_plugin.models.vit import VisionTransformer
from mkd_plugin.utils.files import sha256_of
from mkd_plugin.version import __version__

PARTS = ('student', 'teacher', 'decoder')


@dataclass
class Conversion:
    """Result of a conversion."""

    report: LoadReport  #: What happened to every tensor of the source
    options: dict[str, Any]  #: Options of the network that was written
    #: What was compared, with the largest error; None if it was not run, with the reason in the title
    checks: list[tuple[str, float | None]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  #: Names of our tensors that the target cannot hold
    #: Names of our tensors that hold NaN or infinity; outputs are not compared then
    nonfinite: list[str] = field(default_factory=list)


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
    allow_nonfinite: bool = False,
) -> Conversion:
    """Convert a file, check the result, and write it.

    Args:
        source: A file or folder of any known format.
        destination: File to write: ``.safetensors``, or any other suffix for ``torch.save``. For 'hf' and
            'timm', a name without suffix becomes a folder with their configs and a model card.
        target: 'mkd', 'mmpretrain', 'timm', 'hf', 'mae' or 'openclip'; 'backbone' for the own class of a student that is no
            ViT of ours, with all its names.
        part: 'student' or 'teacher' of our pre-training checkpoints; 'decoder' for the student with its decoder, from or to
            the formats of MAE and dBOT.
        prefix: Prefix of the network's names in the source, if it holds several networks.
        img_size: Resize positions for images of this size, pixels.
        release: The release that the source is; its options and pixel statistics are used.
        options: Known options of the network, which override those in the file.
        objective: Name of the objective that a decoder is written under in our format.
        allow_nonfinite: Convert weights that are NaN or infinite too. The outputs cannot be compared then.

    Raises:
        FileNotFoundError: There is no such source.
        ValueError: The source cannot be read or converted, its weights are not finite, the target cannot hold the network, or
            outputs differ by more than 1e-4 of their largest magnitude. Nothing is written then.
    """
    if part not in PARTS:
        raise ValueError(f"part='{part}': use one of {list(PARTS)}.")
    checkpoint = read_checkpoint(source)
    weights = strip_compile_prefix(weights_of(checkpoint, source))
    if target == 'backbone':
        if part != 'student' or prefix or img_size or release or options:
            raise ValueError(
                "'backbone' copies the student as it is: leave part, prefix, img_size, release, options out."
            )
        return write_backbone(checkpoint, weights, source, Path(destination), allow_nonfinite)
    with refusing(source):
        stated = options_in_metadata(checkpoint)
        if prefix is None and part == 'teacher':
            prefix = find_teacher(weights, source)
        elif prefix is None and release is not None:
            prefix = release.prefix
        found, converted = convert_weights(weights, source, prefix)
        check_claims(converted.tensors, stated)
        known = {**stated, **((release and release.network) or {}), **(options or {})}
        inferred = infer_options(converted.tensors, known)
    network = VisionTransformer(**inferred)
    conversion = Conversion(fill_network(network, checkpoint, source, prefix=found.prefix), network.options)
    decoder = find_decoder(weights, converted.tensors, source) if part == 'decoder' else {}
    check_floating(decoder, dict.fromkeys(decoder, network.patch_embed.projection.weight), source)
    conversion.nonfinite = list_nonfinite({**network.state_dict(), **decoder}, source, allowed=allow_nonfinite)
    check_source(conversion, network, found, weights)
    if img_size is not None:
        old_grid = network.grid
        network = VisionTransformer(**{**network.options, 'img_size': img_size})
        conversion.report = fill_network(network, checkpoint, source, prefix=found.prefix, grid=old_grid)
        conversion.options = network.options
        if decoder:
            decoder['pos_embed'] = resize_positions(decoder['pos_embed'], old_grid, network.grid)
    provenance = build_provenance(Path(source), found, checkpoint, conversion.options, release)
    write_converted(conversion, Path(destination), target, network, decoder, objective, provenance)
    return conversion


def list_nonfinite(tensors: Mapping[str, Tensor], source: str | Path, *, allowed: bool) -> list[str]:
    """List the names of tensors with NaN or infinity. Raises ValueError if there are any and they are not allowed."""
    found = [name for name, tensor in tensors.items() if not tensor.float().isfinite().all()]
    if found and not allowed:
        raise ValueError(
            f'{source}: {len(found)} weights hold NaN or infinity: {found[:4]}. Nothing was written, because outputs cannot be '
            'compared. --allow-nonfinite converts them without a comparison.'
        )
    return found


def write_backbone(
    checkpoint: Mapping[str, Any], weights: Mapping[str, Tensor], source: str | Path, path: Path, allow_nonfinite: bool
) -> Conversion:
    """Write the network of a :class:`BackboneStudent` by its own names. Raises ValueError if the file holds none."""
    provenance, prefix = provenance_of(checkpoint), 'backbone.network.'
    own = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    if 'network' not in provenance or not own:
        raise ValueError(
            f"{source} holds no BackboneStudent; 'backbone' writes nothing else. Use 'mmpretrain', 'timm', … for a ViT."
        )
    nonfinite = list_nonfinite(own, source, allowed=allow_nonfinite)
    entries = ('version', 'network', 'pixel_mean', 'pixel_std')
    write_weights(path, own, {name: provenance[name] for name in entries if name in provenance})
    report = LoadReport(str(source), matched=list(own), unexpected=[], into=str(provenance['network']))
    checks: list[tuple[str, float | None]] = [('target: the class itself, by its own names; nothing to compare', None)]
    return Conversion(report, {}, checks, nonfinite=nonfinite)


def find_teacher(weights: Mapping[str, Tensor], source: str | Path) -> str:
    """Find the prefix of a pre-training checkpoint's teacher. Raises ValueError unless there is exactly one."""
    prefixes = sorted({match[0] for name in weights if (match := re.match(r'teachers\.[^.]+\.network\.', name))})
    if len(prefixes) != 1:
        raise ValueError(
            f"{source}: part='teacher' needs one teacher in the file, and there are {prefixes}. Give prefix=…."
        )
    return prefixes[0]


def find_decoder(weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """Return the decoder by the names of our head. Raises ValueError unless there is exactly one."""
    prefix = 'decoder.'
    converted = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if converted:
        return converted
    heads: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        if match := re.fullmatch(r'(.*objectives\.[^.]+\.heads\.0\.)(.+)', name):
            heads.setdefault(match[1], {})[match[2]] = tensor
    own = {'mask_token', 'pos_embed', 'predict.weight'}
    decoders = {place: head for place, head in heads.items() if own <= set(head)}
    if len(decoders) != 1:
        raise ValueError(f"{source}: part='decoder' needs one decoder in the file, and there are {list(decoders)}.")
    return next(iter(decoders.values()))


def check_source(
    conversion: Conversion, network: VisionTransformer, found: DetectedNetwork, weights: Mapping[str, Tensor]
) -> None:
    """Compare with the source's own class, if its library is installed. Raises ValueError if the outputs differ."""
    features = features_of(network.options)
    fitting = [entry for entry in FOREIGN_CLASSES if entry.format is found.format and entry.fits(features)]
    if not fitting:
        conversion.checks.append((f'source: no library here has a class with the names of {found.format.title}', None))
        return
    inside = {name: tensor.float() for name, tensor in found.inside(weights).items()}
    compare_outputs(conversion, 'source', fitting[0], network, inside)


def compare_outputs(
    conversion: Conversion, side: str, foreign: ForeignClass, network: VisionTransformer, weights: Mapping[str, Tensor]
) -> None:
    """Run another library's network and ours, and record the error. Raises ValueError if the outputs differ."""
    title = f'{side}: {foreign.title}'
    if not foreign.installed:
        conversion.checks.append((f'{title} (not installed)', None))
        return
    if conversion.nonfinite:
        conversion.checks.append((f'{title} (weights are not finite, so outputs cannot be compared)', None))
        return
    error = largest_error(foreign.library.run, build_filled(foreign, network.options, weights), network)
    conversion.checks.append((title, error))
    if not error <= TOLERANCE:
        raise ValueError(
            f'The output of {title} differs from ours by {error:.1e} of the largest magnitude, {TOLERANCE:.0e} is allowed. '
            'Nothing was written. Options that names and shapes do not determine may be wrong: num_heads, activation, '
            f'norm_eps (used: {network.options}).'
        )


def build_provenance(
    source: Path,
    found: DetectedNetwork,
    checkpoint: Mapping[str, Any],
    options: Mapping[str, Any],
    release: Release | None,
) -> dict[str, Any]:
    before = provenance_of(checkpoint)
    pixels: dict[str, Any] = {name: before[name] for name in ('pixel_mean', 'pixel_std') if name in before}
    if release is not None:
        pixels = dict(pixel_mean=list(release.pixel_mean), pixel_std=list(release.pixel_std))
    origin = dict(
        file=source.name, sha256=sha256_of(source.expanduser()), format=found.format.title, prefix=found.prefix
    )
    return {'version': __version__, 'backbone': dict(options), 'source': origin, **pixels}


def write_converted(
    conversion: Conversion,
    path: Path,
    target: str,
    network: VisionTransformer,
    decoder: Mapping[str, Tensor],
    objective: str,
    provenance: Mapping[str, Any],
) -> None:
    """Compare the target's network with ours, then write it."""
    tensors = dict(network.state_dict())
    if target == 'mkd':
        named = {f'backbone.{name}': tensor for name, tensor in tensors.items()}
        head = {f'objectives.{objective}.heads.0.{name}': tensor for name, tensor in decoder.items()}
        write_weights(path, {**named, **head}, provenance)
        return
    foreign, exported, conversion.left_out = export_weights(tensors, network.options, target)
    compare_outputs(conversion, 'target', foreign, network, exported)
    if decoder:
        if target != 'mae':
            raise ValueError(f"part='decoder' can be written as 'mae' or 'mkd', not as '{target}'.")
        encoder = {name: tensor for name, tensor in tensors.items() if name not in PRETRAINING_ONLY}
        exported, left = FORMATS['mae'].to_theirs(
            {**encoder, **{f'decoder.{name}': tensor for name, tensor in decoder.items()}}
        )
        if left:
            raise ValueError(f"MAE's format has no place for {left[:6]}.")
    prefix = {'mmpretrain': 'backbone.', 'openclip': 'visual.'}.get(target, '')  # where the library's models have it
    write_weights(
        path,
        {prefix + name: tensor for name, tensor in exported.items()},
        provenance,
        entry='model' if target == 'mae' else 'state_dict',
        files=folder_files(foreign, network.options, provenance, sum(t.numel() for t in exported.values()))
        if not path.suffix
        else None,
    )
