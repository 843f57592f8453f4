"""What a checkpoint of ours holds: plain values only, and where it comes from."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner
from torch import nn

from mkd_plugin.checkpoint.read import provenance_of
from mkd_plugin.engine.preemption import is_training
from mkd_plugin.engine.provenance import FORMAT, changed_teachers, model_files, software
from mkd_plugin.engine.teacher_updates import bare_model
from mkd_plugin.models.protocols import pixel_statistics
from mkd_plugin.models.teachers.student_copy import StudentCopy
from mkd_plugin.models.vit import VisionTransformer
from mkd_plugin.registry import HOOKS
from mkd_plugin.version import __version__


@HOOKS.register_module()
class PortableCheckpointHook(Hook):
    """Makes a checkpoint readable with ``torch.load(weights_only=True)``, and says what network is in it.

    * The log's history, which mmengine stores as objects, is stored as lists and restored on resume.
    * ``meta['mkd_plugin']`` names the network, the student's pixel statistics, the stage and the version, so that
      ``mkd_plugin.load_student`` can rebuild it without reading the config.
    * It also says what the run was made with: versions of hosts and torch, and the sha256 of each file that a teacher or
      the student was read from, as it was when the run began. The config and the seed are mmengine's own entries.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, Any]] | None = None

    def before_run(self, runner: Runner) -> None:
        """Look at the files now: days later others may lie there."""
        if is_training(runner):
            self._look_at_files(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Replace objects by plain values, and add the provenance."""
        hub = checkpoint['message_hub']
        hub['log_scalars'] = {name: pack(buffer) for name, buffer in hub['log_scalars'].items()}
        hub['runtime_info'] = {name: value for name, value in hub['runtime_info'].items() if is_plain(value)}
        checkpoint['meta']['mkd_plugin'] = dict(
            format=FORMAT,
            version=__version__,
            software=software(),
            stage=runner.message_hub.get_info('mkd_stage', None),
            files=self.files or {},
            **describe(bare_model(runner)),
        )

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Give mmengine its objects back; say so if the run goes on with another teacher."""
        scalars = checkpoint.get('message_hub', {}).get('log_scalars', {})
        for name, value in scalars.items():
            if isinstance(value, dict):
                scalars[name] = unpack(value)
        before = provenance_of(checkpoint).get('files')
        if runner._resume and before:
            files = self._look_at_files(runner)
            for line in changed_teachers(before, files):
                runner.logger.warning(f'The file of a teacher has changed since this run began: {line}.')
            # what the student started from is not needed any more, and may be gone
            self.files = {
                name: before.get(name, file) if file['sha256'] is None else file for name, file in files.items()
            }

    def _look_at_files(self, runner: Runner) -> dict[str, dict[str, Any]]:
        """Once, on the process that writes checkpoints."""
        if self.files is None:  # a FlexibleRunner loads before it calls before_run
            self.files = model_files(runner.cfg) if is_main_process() else {}
        return self.files


def describe(model: nn.Module) -> dict[str, Any]:
    """Size and pixel statistics of a model's ViT, and the teachers that are saved with it; nothing for another network."""
    network = getattr(model, 'backbone', None)
    if not isinstance(network, VisionTransformer):
        return {}
    mean, std = pixel_statistics(model.data_preprocessor, network.in_channels)  # type: ignore[arg-type]
    copies = [
        name for name, teacher in getattr(model, 'teachers', nn.ModuleDict()).items() if is_complete_copy(teacher)
    ]
    return dict(backbone=network.options, pixel_mean=list(mean), pixel_std=list(std), teachers=copies)


def is_complete_copy(teacher: nn.Module) -> bool:
    """Whether a teacher's network is the student's, and is all in the checkpoint."""
    return isinstance(teacher, StudentCopy) and teacher.complete


def pack(buffer: HistoryBuffer) -> dict[str, Any]:
    """A log's history as plain lists."""
    values, counts = buffer.data
    return {'values': values.tolist(), 'counts': counts.tolist(), 'max_length': buffer.max_length}


def unpack(packed: dict[str, Any]) -> HistoryBuffer:
    """The inverse of :func:`pack`."""
    return HistoryBuffer(packed['values'], packed['counts'], packed['max_length'])


def is_plain(value: Any) -> bool:
    """Whether ``weights_only`` loading accepts a value."""
    if isinstance(value, dict):
        return all(map(is_plain, value)) and all(map(is_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return value is None or (isinstance(value, (bool, int, float, str)) and not isinstance(value, np.generic))
