"""``mkd train CONFIG --dry-run``: report what would run and what is missing, and try one step on random images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, init_default_scope
from mmengine.utils import import_modules_from_strings
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from mkd_plugin.engine.optim import group_table
from mkd_plugin.preflight.annotations import check_annotations
from mkd_plugin.preflight.batch import rate_advice
from mkd_plugin.preflight.checks import LOADERS, check_schedule, check_work_dir, missing_files, missing_tree
from mkd_plugin.preflight.mistakes import explain
from mkd_plugin.preflight.plan import (
    Stage,
    batch_of,
    build_for_step,
    fake_batch,
    memory_of,
    plan_warnings,
    run_step,
    stages_of,
)
from mkd_plugin.preflight.rehearsal import check_for_report

CPU_IMAGES = 4
MIB = 2**20


class DryRun:
    """The report. Each part is printed even if an earlier one failed.

    ``images`` is the number of images of the one step; 0 for the batch size on a GPU and ``CPU_IMAGES`` on a CPU.
    """

    def __init__(self, cfg: Config, *, processes: int, images: int, console: Console) -> None:
        self.cfg, self.console = cfg, console
        self.batch = batch_of(cfg, processes)
        self.images = images or (self.batch.images if get_device() != 'cpu' else min(self.batch.images, CPU_IMAGES))
        self.problems: list[str] = []
        self.model: nn.Module | None = None
        self.available: int | None = None  # images
        self.stages: list[Stage] = []
        self.optim_wrapper: Any = None

    def run(self) -> int:
        """Print everything; return 1 if anything is missing or wrong, else 0."""
        if not MMLogger.check_instance_created('dry_run'):  # mmengine logs a line for every tensor without weight decay
            MMLogger.get_instance('dry_run', log_level='WARNING')
        init_default_scope(self.cfg.get('default_scope', 'mmengine'))
        if self.cfg.get('custom_imports'):
            import_modules_from_strings(**self.cfg.custom_imports)
        for title, part in (
            ('files', self.show_files),
            ('annotations', lambda: check_annotations(self.cfg, LOADERS)),
            ('data', self.show_data),
            ('schedule', self.show_stages),
            ('batch', self.show_batch),
            ('model', self.build),
            ('step', self.show_step),
            ('plan', self.show_warnings),
        ):
            self.attempt(title, part)
        for problem in self.problems:
            self.say(f'[bold red]problem[/] {escape(problem)}')
        self.say('[bold red]not ready[/]' if self.problems else '[bold green]ready[/]')
        return 1 if self.problems else 0

    def say(self, text: Any) -> None:
        """Print without cutting text."""
        self.console.print(text, soft_wrap=isinstance(text, str), highlight=False)

    def attempt(self, title: str, part: Callable[[], None]) -> None:
        """Run a part of the report; list an error as a problem."""
        try:
            part()
        except Exception as error:  # every error of a config belongs in the report
            text = explain(error, self.cfg) or str(error)
            shown = f'{type(error).__name__}: {text}' if str(error) in text else text
            self.problems.append(f'{title}: {shown}')

    def show_files(self) -> None:
        check_work_dir(self.cfg.get('work_dir') or '.')
        missing = missing_files(self.cfg)
        if not missing:
            self.say('files: all there')
        for entry in missing:
            self.problems.append(f'missing: {entry.path} – {entry.expected}; --cfg-options {entry.option}=…')
        tree = missing_tree(self.cfg, LOADERS)
        if tree is not None:
            self.say(escape(tree))

    def show_data(self) -> None:
        """Show the number of images; a problem of the folder appears here."""
        if any(entry.option.startswith('train_dataloader') for entry in missing_files(self.cfg)):
            return
        images = self.available = len(DATASETS.build(self.cfg.train_dataloader.dataset))
        steps = images / self.batch.images / self.batch.processes
        self.say(f'data: {images:,} images, {steps:,.1f} steps an epoch')

    def show_stages(self) -> None:
        check_schedule(self.cfg)
        rate = self.cfg.optim_wrapper.optimizer.lr * self.batch.ratio
        table = Table('stage', 'length', 'peak rate', 'reached at', 'final rate', title='schedule')
        self.stages = stages_of(self.cfg, rate)
        for number, stage in enumerate(self.stages, 1):
            length, at = f'{stage.length} {stage.unit}', f'{stage.peak_at} {stage.unit}'
            table.add_row(str(number), length, f'{stage.peak:.4g}', at, f'{stage.final:.4g}')
        self.say(table)

    def show_warnings(self) -> None:
        if hasattr(self.model, 'objectives'):  # a pre-training
            for text in plan_warnings(self.stages, self.batch, self.available, self.model):
                self.say(f'[yellow]warning[/] {escape(text)}')

    def show_batch(self) -> None:
        batch = self.batch
        self.say(
            f'effective batch: {batch.images} images × {batch.accumulation} accumulated × {batch.processes} processes '
            f'= {batch.effective}; rate × {batch.ratio:.4g}'
        )
        if batch.base and not batch.scaled and batch.effective != batch.base:
            self.say(
                f'[yellow]note[/] the rate is for {batch.base}: use '
                f'{batch.base / batch.images / batch.accumulation:.4g} processes, accumulate '
                f'{batch.base / batch.images / batch.processes:.4g} steps, or --auto-scale-lr'
            )
        optimizer = self.cfg.optim_wrapper.optimizer
        advice = rate_advice(batch, optimizer.lr, str(optimizer.type))
        if advice:
            self.say(f'[yellow]note[/] {escape(advice)}')

    def build(self) -> None:
        self.model, self.optim_wrapper = build_for_step(self.cfg, ratio=self.batch.ratio)
        self.say(group_table(self.optim_wrapper.optimizer))
        memory = memory_of(self.model, self.optim_wrapper.optimizer)
        self.say(
            f'memory, estimated (MiB): weights {memory.weights / MIB:.1f}, gradients {memory.gradients / MIB:.1f}, '
            f'optimiser {memory.optimizer / MIB:.1f}, teachers and buffers {memory.teachers / MIB:.1f}: together '
            f'{sum(memory) / MIB:.1f}, and activations'
        )

    def show_step(self) -> None:
        """Run two steps on random images; show the time of the second."""
        if self.model is None or self.optim_wrapper is None:
            return
        unused = bool(self.cfg.get('find_unused_parameters'))
        result = run_step(self.model, self.optim_wrapper, fake_batch(self.cfg, self.images), unused=unused)
        losses = ', '.join(f'{name} {value:.4g}' for name, value in result.losses.items())
        self.say(
            f'step: {result.seconds:.3f} s for {tuple(result.shape)} on {get_device()} '
            f'({result.shape[0] / result.seconds:.1f} images/s); {losses}'
        )
        what = 'peak of the device' if get_device() != 'cpu' else 'growth of the process in the steps'
        self.say(
            f'memory, measured with {self.images} of {self.batch.images} images (MiB): {what} {result.peak / MIB:.1f}, '
            f'optimiser {result.optimizer / MIB:.1f}'
        )


def dry_run(cfg: Config, *, processes: int = 1, images: int = 0, console: Console | None = None) -> int:
    """Report what a config would do; return the exit code, 1 if anything is missing or wrong. See :class:`DryRun`."""
    check_for_report(cfg)
    return DryRun(cfg, processes=processes, images=images, console=console or Console()).run()
