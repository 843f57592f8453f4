"""What a checkpoint records about its run: the deciding config, the software, the files it was made from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner
from torch import nn

from mkd_plugin.checkpoint.download import WEB, cached_path
from mkd_plugin.checkpoint.read import provenance_of
from mkd_plugin.compat.hosts import HOSTS
from mkd_plugin.engine.run_utils import bare_model, is_training
from mkd_plugin.models.backbones import BackboneStudent
from mkd_plugin.models.protocols import pixel_statistics
from mkd_plugin.models.vit import VisionTransformer
from mkd_plugin.registry import HOOKS
from mkd_plugin.utils.files import sha256_of
from mkd_plugin.version import __version__

FORMAT = 1  # of meta['mkd_plugin']; increase it when readers of the older format would misread the new one
# Top-level keys of a config that decide a run's result ...
DECIDING = (
    'model', 'data_preprocessor', 'train_dataloader', 'optim_wrapper', 'param_scheduler', 'train_cfg', 'auto_scale_lr',
    'custom_hooks', 'randomness',
)  # fmt: skip
# ... and what does not, below them: order and augmentation of samples are the same for any number of workers.
IRRELEVANT = re.compile(
    r'train_dataloader\.(num_workers|persistent_workers|pin_memory|prefetch_factor|timeout)'
    r'|train_cfg\.(val_\w+|dynamic_intervals.*|fast_forward_on_resume)|.*\._scope_'
)


@HOOKS.register_module()
class PortableCheckpointHook(Hook):
    """Makes checkpoints readable with ``torch.load(weights_only=True)``, and self-describing.

    * The log's history, which mmengine stores as objects, is stored as lists and restored on resume.
    * ``meta['mkd_plugin']`` holds the network's options, the student's pixel statistics, the stage and the version, from
      which ``mkd_plugin.load_student`` rebuilds the network without the config.
    * It also holds the versions of hosts and torch, and the sha256 of each file that a teacher or the student was loaded
      from, as of the start of the run. The config and the seed are in mmengine's own entries.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, Any]] | None = None

    def before_run(self, runner: Runner) -> None:
        """Hash the files now: they may be replaced during the run."""
        if is_training(runner):
            self._hash_files(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Replace objects by plain values, and add the provenance."""
        hub = checkpoint['message_hub']
        hub['log_scalars'] = {name: pack(buffer) for name, buffer in hub['log_scalars'].items()}
        info = {
            name: value.item() if isinstance(value, np.generic) else value  # mmseg's best score is one of numpy
            for name, value in hub['runtime_info'].items()
        }
        hub['runtime_info'] = {name: value for name, value in info.items() if is_plain(value)}
        checkpoint['meta']['mkd_plugin'] = dict(
            format=FORMAT,
            version=__version__,
            software=software(),
            stage=runner.message_hub.get_info('mkd_stage', None),
            files=self.files or {},
            **describe(bare_model(runner)),
        )

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Restore mmengine's objects, and the record of files that are gone."""
        scalars = checkpoint.get('message_hub', {}).get('log_scalars', {})
        for name, value in scalars.items():
            if isinstance(value, dict):
                scalars[name] = unpack(value)
        before = provenance_of(checkpoint).get('files')
        if runner._resume and before:
            files = self._hash_files(runner)
            # the file that the student started from is no longer needed and may be gone: keep its old record
            self.files = {name: before.get(name, new) if new['sha256'] is None else new for name, new in files.items()}

    def _hash_files(self, runner: Runner) -> dict[str, dict[str, Any]]:
        """Hash the files once, on the process that writes checkpoints."""
        if self.files is None:  # a FlexibleRunner loads before it calls before_run
            self.files = model_files(runner.cfg) if is_main_process() else {}
        return self.files


def describe(model: nn.Module) -> dict[str, Any]:
    """Options of a model's ViT, or the class of another student, pixel statistics, and the teachers saved with it."""
    network = getattr(model, 'backbone', None)
    if not isinstance(network, (VisionTransformer, BackboneStudent)):
        return {}
    mean, std = pixel_statistics(model.data_preprocessor, network.in_channels)  # type: ignore[arg-type]
    if isinstance(network, BackboneStudent):
        return dict(network=network.title, pixel_mean=list(mean), pixel_std=list(std))
    # a teacher that is a copy of the student and saved as a whole says so
    teachers = getattr(model, 'teachers', nn.ModuleDict())
    copies = [name for name, teacher in teachers.items() if getattr(teacher, 'complete', False)]
    return dict(backbone=network.options, pixel_mean=list(mean), pixel_std=list(std), teachers=copies)


def pack(buffer: HistoryBuffer) -> dict[str, Any]:
    """Convert a log's history to plain lists."""
    values, counts = buffer.data
    return {'values': values.tolist(), 'counts': counts.tolist(), 'max_length': buffer.max_length}


def unpack(packed: dict[str, Any]) -> HistoryBuffer:
    """Invert :func:`pack`."""
    return HistoryBuffer(packed['values'], packed['counts'], packed['max_length'])


def is_plain(value: Any) -> bool:
    """Whether ``weights_only`` loading accepts a value."""
    if isinstance(value, dict):
        return all(map(is_plain, value)) and all(map(is_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return value is None or (isinstance(value, (bool, int, float, str)) and not isinstance(value, np.generic))


def config_record(cfg: Config) -> dict[str, str]:
    """The deciding values of a config by dotted name, as text that checkpoints can hold."""
    values = cfg.to_dict() if isinstance(cfg, Config) else dict(cfg)
    record = {'world_size': str(get_world_size())}
    for key in DECIDING:
        for name, value in _leaves(key, values.get(key)):
            if not IRRELEVANT.fullmatch(name):
                record[name] = json.dumps(value, default=_plain_name)
    return record


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Every value of a nested config with its dotted name; None counts as absent."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _leaves(f'{name}.{key}', part)
    elif isinstance(value, (list, tuple)) and any(isinstance(part, (Mapping, list, tuple)) for part in value):
        for number, part in enumerate(value):
            yield from _leaves(f'{name}.{number}', part)
    elif value is not None:
        yield name, value


def _plain_name(value: Any) -> str:
    """Name of a class or function; of other objects only the type, because their text may contain an address."""
    if hasattr(value, '__qualname__'):
        return f'{value.__module__}.{value.__qualname__}'
    return str(value) if type(value).__name__.startswith('Lazy') else type(value).__qualname__


def changes_between(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """One line per difference between two config records."""
    absent = 'absent'
    return [
        f'{name}: {old.get(name, absent)} → {new.get(name, absent)}'
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def software() -> dict[str, str]:
    """Versions of torch, timm and the installed hosts by module, with the distribution's name for hosts."""
    found = {
        host.module: ', '.join(f'{number} ({name})' for name, number in installed.items())
        for host in HOSTS
        if (installed := host.installed())
    }
    found['torch'] = str(torch.__version__)  # a plain string: weights_only loading refuses TorchVersion
    with suppress(PackageNotFoundError):
        found['timm'] = version('timm')
    return found


def model_files(cfg: Config) -> dict[str, dict[str, Any]]:
    """Fingerprints of the files that a config loads teachers and the student from."""
    values = cfg.to_dict() if isinstance(cfg, Config) else dict(cfg)
    return {
        name.removeprefix('model.'): fingerprint(value)
        for name, value in _leaves('model', values.get('model'))
        if name.split('.')[-1] == 'checkpoint' and isinstance(value, str) and value
    }


def fingerprint(path: str) -> dict[str, Any]:
    """Size and sha256 of a file or folder, or of the downloaded copy of an address."""
    file = cached_path(path) if path.startswith(WEB) else Path(path).expanduser()
    if not file.exists():
        return {'path': path, 'bytes': None, 'sha256': None}
    parts = sorted(part for part in file.iterdir() if part.is_file()) if file.is_dir() else [file]
    stats = [part.stat() for part in parts]
    return {
        'path': path if '://' in path else str(file.resolve()),
        'bytes': sum(stat.st_size for stat in stats),
        'sha256': _sha256(file, tuple((stat.st_size, stat.st_mtime_ns) for stat in stats)),
    }


@lru_cache(maxsize=64)
def _sha256(file: Path, state: tuple[tuple[int, int], ...]) -> str:
    """Hash a file; one that is compared on resume and recorded as well is read once."""
    return sha256_of(file)


def changed_teachers(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line per teacher's file whose content differs from that at the start of the run."""
    return [
        f'{name}: {new[name]["path"]} had sha256 {before["sha256"]} and now has {new[name]["sha256"]}'
        for name, before in old.items()
        if name.startswith('teachers.') and before['sha256'] and name in new and new[name]['sha256'] != before['sha256']
    ]
