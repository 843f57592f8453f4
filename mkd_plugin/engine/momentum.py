"""Moves a momentum teacher after every optimiser step."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mkd_plugin.engine.stages import bare_model
from mkd_plugin.engine.strategies import whole_parameters
from mkd_plugin.models.teachers import MomentumTeacher
from mkd_plugin.registry import HOOKS


@HOOKS.register_module()
class MomentumHook(Hook):
    """Lets every :class:`MomentumTeacher` of the model follow the student.

    Raises:
        ValueError: The model has none (when the run starts).
    """

    def before_run(self, runner: Runner) -> None:
        """Find the teachers."""
        modules = bare_model(runner).teachers.values()
        self.teachers = [teacher for teacher in modules if isinstance(teacher, MomentumTeacher)]
        if not self.teachers:
            raise ValueError('MomentumHook found no MomentumTeacher in the model: add one, or leave the hook out.')

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Move after a step, and not after an iteration that only accumulated gradients."""
        if (runner.iter + 1) % runner.optim_wrapper._accumulative_counts and runner.iter + 1 < runner.max_iters:
            return
        with whole_parameters(runner.model):
            for teacher in self.teachers:
                teacher.follow(bare_model(runner).backbone, (runner.iter + 1) / runner.max_iters)
