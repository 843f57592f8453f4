"""What a config would do: stages, rates, batch, memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS, DefaultScope
from torch import nn

from mkd_plugin.engine.schedules import fit_schedule, schedule_of
from mkd_plugin.models.protocols import Stages

TICKS = 1000  # a schedule is followed at so many points: its shape does not depend on how many steps an epoch has

# How many numbers the optimiser keeps for each weight.
STATES = {'Adam': 2, 'AdamW': 2, 'NAdam': 2, 'RAdam': 2, 'Lamb': 2, 'LAMB': 2, 'Adamax': 2, 'Lion': 1, 'RMSprop': 1}


@dataclass(frozen=True)
class Stage:
    """A stage of a run; a run without stages is one.

    Attributes:
        length: Epochs or iterations.
        unit: Which of them.
        peak: The highest rate that the schedule reaches.
        peak_at: When, in ``unit``.
        final: The rate at the end.
    """

    length: int
    unit: str
    peak: float
    peak_at: int
    final: float


@dataclass(frozen=True)
class Batch:
    """Images behind one update."""

    images: int
    accumulation: int
    processes: int
    base: int | None
    scaled: bool

    @property
    def effective(self) -> int:
        """Images an update."""
        return self.images * self.accumulation * self.processes

    @property
    def ratio(self) -> float:
        """What ``--auto-scale-lr`` multiplies the rate by; 1 without it."""
        return self.effective / self.base if self.scaled and self.base else 1.0


@dataclass(frozen=True)
class Memory:
    """Bytes of one process, apart from activations."""

    weights: int
    gradients: int
    optimizer: int
    teachers: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.optimizer + self.teachers


def batch_of(cfg: Config, processes: int) -> Batch:
    """The effective batch of a config."""
    scaling = cfg.get('auto_scale_lr') or {}
    accumulation = cfg.optim_wrapper.get('accumulative_counts', 1)
    base, enabled = scaling.get('base_batch_size'), bool(scaling.get('enable', False))
    if enabled and base is not None:
        base = round(base * accumulation)  # divided by --auto-scale-lr, for mmengine forgets accumulation
    return Batch(cfg.train_dataloader.batch_size, accumulation, processes, base, enabled)


def stages_of(cfg: Config, rate: float) -> list[Stage]:
    """The stages of a run, with the rates that mmengine's own schedulers give.

    Raises:
        ValueError: The schedule does not fit into a stage.
    """
    by_epoch = cfg.train_cfg.get('max_epochs') is not None
    total = cfg.train_cfg.max_epochs if by_epoch else cfg.train_cfg.max_iters
    schedule = schedule_of(cfg)
    if by_epoch:  # how many epochs some iterations are depends on the data: such a warm-up is not shown
        schedule = [entry for entry in schedule if entry.get('by_epoch', True)]
    distills = 'teachers' in cfg.get('model', {})
    lengths = stages_asked_for(cfg).lengths(total)
    stages = []
    for length in lengths:
        own = fit_schedule(schedule, length, by_epoch=by_epoch) if distills else schedule
        rates = follow(own, rate, length)
        peak = max(rates)
        tick = rates.index(peak)
        at = round((tick + 1) * length / TICKS) if tick else 0
        stages.append(Stage(length, 'epochs' if by_epoch else 'iterations', peak, at, rates[-1]))
    return stages


def stages_asked_for(cfg: Config) -> Stages:
    """Read the stages that a teacher of the config asks for; one if none does."""
    for teacher in (cfg.get('model', {}).get('teachers') or {}).values():
        stages = teacher.get('stages', 1)
        if stages != 1:
            return Stages((1,) * stages if isinstance(stages, int) else tuple(stages))
    return Stages((1,))


def follow(schedule: Sequence[dict[str, Any]], rate: float, length: int) -> list[float]:
    """The rate at ``TICKS`` points of a stage."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=rate)
    schedulers = []
    for entry in schedule:
        if 'Momentum' in str(entry['type']):
            continue
        entry = {key: value for key, value in entry.items() if key != 'convert_to_iter_based'}
        for key in ('begin', 'end', 'T_max', 'step_size', 'milestones'):
            value = entry.get(key)
            if isinstance(value, (list, tuple)):
                entry[key] = [round(point * TICKS / length) for point in value]
            elif isinstance(value, int) and value < 10**9:  # mmengine's infinity
                entry[key] = round(value * TICKS / length)
        with DefaultScope.overwrite_default_scope('mmengine'):
            schedulers.append(PARAM_SCHEDULERS.build(entry, default_args={'optimizer': optimizer}))
    rates = []
    for _ in range(TICKS):
        rates.append(float(optimizer.param_groups[0]['lr']))
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return rates


def size_of(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def memory_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> Memory:
    """What weights, gradients, optimiser and teachers (all that is not trained) take, estimated."""
    trained = size_of(parameter for parameter in model.parameters() if parameter.requires_grad)
    frozen = size_of(parameter for parameter in model.parameters() if not parameter.requires_grad)
    kind = type(optimizer).__name__
    states = STATES.get(kind, 1 if optimizer.defaults.get('momentum') else 0)
    return Memory(trained, trained, states * trained, frozen + size_of(model.buffers()))
