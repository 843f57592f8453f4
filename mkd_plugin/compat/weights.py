"""Make mmengine say in one line what a file gave a network, and refuse the file of another network.

mmengine loads the tensors that fit and lists the others; the run then trains from random weights.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import mmengine.runner
from mmengine.logging import print_log
from mmengine.model import BaseModel, BaseModule, BaseTTAModel, is_model_wrapper
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys
from torch.utils.weak import WeakTensorKeyDictionary

from mkd_plugin.checkpoint.read import CheckpointError
from mkd_plugin.checkpoint.report import LoadReport, shorten

# The file that a tensor was read from. mmengine hands on the tensors alone.
FILES: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

# The least share of a backbone's values that a file of this backbone has; a host's extra layers are new.
LEAST = 0.5

BLOCK = re.compile(r'\.(\d+)\.(?=[^.]+\.[^.]+)')  # the number of a module that has modules of its own


def remember_file(checkpoint: Mapping[str, Any], filename: str) -> None:
    """Note which file the tensors of a checkpoint come from."""
    for part in (checkpoint, checkpoint.get('state_dict'), checkpoint.get('model')):
        for value in part.values() if isinstance(part, Mapping) else ():
            if isinstance(value, Tensor):
                FILES[value] = filename


def load_state_dict(module: nn.Module, weights: Mapping[str, Tensor], *, source: str, strict: bool) -> LoadReport:
    """Load what fits into a model or a wrapper of one, and report every tensor; ``source`` is the file, for messages.

    Raises:
        CheckpointError: ``strict`` is False, and the file is of another network; see :func:`why_another`.
        RuntimeError: ``strict`` is True, and a tensor is missing, unexpected or of another shape. mmengine's callers
            expect this class.
    """
    own: dict[str, Tensor] = mmengine_checkpoint.get_state_dict(unwrap(module))
    missing: list[str] = []
    unexpected: list[str] = []
    errors: list[str] = []
    fill(module, dict(weights), '', getattr(weights, '_metadata', {}), (missing, unexpected, errors))
    counters = {name for name in own if name.endswith('num_batches_tracked')} - set(weights)  # old files have none
    absent = set(missing) - counters
    shapes = {
        name: f'{name} is {tuple(weights[name].shape)} in the file and {tuple(own[name].shape)} here'
        for name in own
        if name in weights and any(error.startswith(f'size mismatch for {name}:') for error in errors)
    }
    report = LoadReport(source, into=type(unwrap(module)).__name__, unexpected=unexpected)
    renamed = set(weights) - set(own) - set(unexpected)  # hosts' models know older names of their tensors
    for name, tensor in own.items():
        if name in counters:
            continue
        lacking = name in absent or name in shapes or (name not in weights and not renamed)
        changed = name in weights and weights[name].shape != tensor.shape
        kind = 'missing' if lacking else 'resized' if changed else 'matched'
        getattr(report, kind).append(name)
    if strict and (absent or unexpected or errors):
        differing = [report.summary(), *list(shapes.values())[:4]]
        raise RuntimeError(f'{source} does not fit {report.into}: {"; ".join(differing)}')
    broken = [error for error in errors if not error.startswith('size mismatch for ')]
    reason = broken[0] if broken else why_another(unwrap(module), own, report, list(shapes.values()))
    if reason is not None:
        raise CheckpointError(refusal(report, reason, list(weights), list(own)))
    return report


def unwrap(module: nn.Module) -> nn.Module:
    """Return the model inside a wrapper for several processes or for test-time augmentation."""
    while is_model_wrapper(module) or isinstance(module, BaseTTAModel):
        module = module.module  # type: ignore[assignment]
    return module


def fill(
    module: nn.Module, weights: dict[str, Tensor], prefix: str, metadata: Mapping[str, Any], found: tuple[Any, ...]
) -> None:
    """Load a module and those in it by torch's protocol, wrapped or not; ``found`` gets missing, unexpected and errors."""
    module = unwrap(module)
    module._load_from_state_dict(weights, prefix, metadata.get(prefix[:-1], {}), True, *found)
    for name, child in module._modules.items():  # named_children() leaves a module out that has two names
        if child is None:
            continue
        start = f'{prefix}{name}.'
        fill(child, {key: weights[key] for key in weights if key.startswith(start)}, start, metadata, found)
    for hook in module._load_state_dict_post_hooks.values():
        hook(module, _IncompatibleKeys(*found[:2]))  # hooks change the two lists


def why_another(module: nn.Module, own: Mapping[str, Tensor], report: LoadReport, shapes: Sequence[str]) -> str | None:
    """Return why a file is of another network, or None if it is of this one or of its backbone.

    The part that must fit is ``backbone`` of a model, and the whole of a component, whose config names the file. Of other
    models, which may be trained in part, one tensor must fit.
    """
    core = 'backbone.' if any(name.startswith('backbone.') for name in own) else ''
    loaded = set(report.loaded)
    if not loaded:
        return 'no tensor fits'
    if not core and isinstance(module, BaseModel):
        return None
    wrong = [text for text in shapes if text.startswith(core)]
    if wrong:
        return f'{len(wrong)} tensors have another shape: {shorten(wrong, 2)}'
    inside = [name for name in own if name.startswith(core)]
    more, less = set(blocks(report.unexpected)), set(blocks(inside))
    here = set(blocks(loaded & set(inside)))
    numbered = {block.rpartition('.')[0] for block in here}
    missing = sorted(block for block in less - here if block.rpartition('.')[0] in numbered)
    extra = sorted(block for block in more - less if block.rpartition('.')[0] in numbered)
    if not core:
        extra = []  # a component may take the first blocks of a file, as SAN's image encoder does
    if missing or extra:
        lacking = f'the file lacks {shorten(missing, 3)}' if missing else f'the network lacks {shorten(extra, 3)}'
        return f'the number of blocks differs, {lacking}'
    share = sum(own[name].numel() for name in inside if name in loaded) / sum(own[name].numel() for name in inside)
    if share < LEAST:
        return f'it has {share:.0%} of the weights of {core.rstrip(".") or "the network"}'
    return None


def blocks(names: Sequence[str] | set[str]) -> Iterator[str]:
    """Yield the numbered modules, such as 'backbone.layers.11', that tensors belong to."""
    for name in names:
        for found in BLOCK.finditer(name):
            yield name[: found.end(1)]


def refusal(report: LoadReport, reason: str, theirs: Sequence[str], ours: Sequence[str]) -> str:
    return (
        f'{report.source} is of another network than {report.into}: {reason}.\n'
        f'    the file has {shorten(theirs, 3)}\n'
        f'    the network has {shorten(ours, 3)}\n'
        'Give the checkpoint of this architecture; only heads may differ. A ViT of mkd_plugin converts names of other '
        "libraries and resizes positions with model.backbone.init_cfg=dict(type='Pretrained', checkpoint=FILE)."
    )


def install_reports() -> None:
    """Replace mmengine's ``load_state_dict``, which its ways of loading share, and torch's in ``init_weights`` of hosts."""
    original = mmengine_checkpoint.load_state_dict
    if hasattr(original, '__wrapped__'):
        return

    @functools.wraps(original)
    def load(module: nn.Module, state_dict: Any, strict: bool = False, logger: Any = None) -> None:
        source = file_of(state_dict)
        if source is None:  # weights that are passed on in memory, such as those of an average
            original(module, state_dict, strict, logger)
            return
        report = load_state_dict(module, state_dict, source=source, strict=strict)
        print_log(report.line(), logger='current' if logger is None else logger)

    @functools.wraps(nn.Module.load_state_dict)
    def load_module(self: BaseModule, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        # mmengine sets the attribute while a model starts: Swin, BEiT and MAE of mmdet and mmseg then load a file like this
        if strict or file_of(state_dict) is None or not hasattr(self, '_params_init_info'):
            return super(BaseModule, self).load_state_dict(state_dict, strict, assign)
        return load(self, state_dict)

    mmengine_checkpoint.load_state_dict = mmengine.runner.load_state_dict = load
    mmengine_checkpoint._load_checkpoint_with_prefix = name_prefixes(mmengine_checkpoint._load_checkpoint_with_prefix)
    BaseModule.load_state_dict = load_module


def file_of(weights: Mapping[str, Any]) -> str | None:
    """Return the file that weights were read from, or None."""
    tensors = (value for value in weights.values() if isinstance(value, Tensor))
    return next((FILES[value] for value in tensors if value in FILES), None)


def name_prefixes(original: Callable[..., Any]) -> Callable[..., Any]:
    """Make mmengine's reader of a part of a file say what is in the file if that part is not."""

    @functools.wraps(original)
    def read(prefix: str, filename: str, map_location: Any = None) -> Any:
        try:
            return original(prefix, filename, map_location=map_location)
        except AssertionError as error:
            checkpoint = mmengine_checkpoint.CheckpointLoader.load_checkpoint(filename, 'cpu')
            names = sorted({name.partition('.')[0] for name in checkpoint.get('state_dict', checkpoint)})
            raise CheckpointError(f'prefix={prefix!r}: {filename} has {shorten(names)}.') from error

    return read
