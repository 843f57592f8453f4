"""What a config would do: stages, learning rates, batch, memory, and a training step on random images."""

from __future__ import annotations

import copy
import resource
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose
from mmengine.device import get_device
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import FUNCTIONS, MODELS, PARAM_SCHEDULERS, DefaultScope
from mmengine.runner import load_checkpoint
from PIL import Image
from torch import nn

from mkd_plugin.compat.ops.ext import check_ops
from mkd_plugin.engine.guards import check_next_backward
from mkd_plugin.engine.teacher_updates import fit_schedule, schedule_of
from mkd_plugin.models.distiller import MaskedDistiller
from mkd_plugin.models.protocols import Progress, Stages
from mkd_plugin.preflight.checks import without_checkpoints

MIN_STAGE = 500  # updates; with fewer a stage is hopeless
TICKS = 1000  # points of a schedule; its shape does not depend on the steps of an epoch
HEIGHT, WIDTH = 256, 320  # of a random image

# Numbers that an optimiser keeps for each weight.
STATES = {'Adam': 2, 'AdamW': 2, 'NAdam': 2, 'RAdam': 2, 'Lamb': 2, 'LAMB': 2, 'Adamax': 2, 'Lion': 1, 'RMSprop': 1}


@dataclass(frozen=True)
class Stage:
    """A stage of a run; a run without stages is one."""

    length: int  #: Length in ``unit``
    unit: str  #: 'epochs' or 'iterations'
    peak: float  #: Highest learning rate
    peak_at: int  #: When it is reached, in ``unit``
    final: float  #: Learning rate at the end


@dataclass(frozen=True)
class Batch:
    """The images of one update."""

    images: int
    accumulation: int
    processes: int
    base: int | None
    scaled: bool

    @property
    def effective(self) -> int:
        """Images for each update."""
        return self.images * self.accumulation * self.processes

    @property
    def ratio(self) -> float:
        """Factor of ``--auto-scale-lr`` on the learning rate; 1 without it."""
        return self.effective / self.base if self.scaled and self.base else 1.0


class Memory(NamedTuple):
    """Bytes of one process, without activations."""

    weights: int
    gradients: int
    optimizer: int
    teachers: int


def batch_of(cfg: Config, processes: int) -> Batch:
    scaling = cfg.get('auto_scale_lr') or {}
    accumulation = cfg.optim_wrapper.get('accumulative_counts', 1)
    base, enabled = scaling.get('base_batch_size'), bool(scaling.get('enable', False))
    if enabled and base is not None:
        base = round(base * accumulation)  # --auto-scale-lr divided it, because mmengine ignores accumulation
    return Batch(cfg.train_dataloader.batch_size, accumulation, processes, base, enabled)


def stages_of(cfg: Config, rate: float) -> list[Stage]:
    """Return the stages of a run, with the learning rates that mmengine's own schedulers give."""
    by_epoch = cfg.train_cfg.get('max_epochs') is not None
    total = cfg.train_cfg.max_epochs if by_epoch else cfg.train_cfg.max_iters
    schedule = schedule_of(cfg)
    if by_epoch:  # a warm-up in iterations is left out: its epochs depend on the data
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


def plan_warnings(stages: Sequence[Stage], batch: Batch, images: int | None, model: nn.Module | None) -> list[str]:
    """Say what makes a plan hopeless, with figures. What is not known (images, model) is None, and is not judged."""
    found = []
    if images is not None and batch.effective > images:
        found.append(f'an update takes {batch.effective:,} images, but there are only {images:,}: use a smaller batch')
    for number, stage in enumerate(stages, 1):
        updates = stage.length / batch.accumulation
        if stage.unit == 'epochs':
            updates = stage.length * (images or float('inf')) / batch.effective
        if updates < MIN_STAGE:
            found.append(
                f'stage {number} has {updates:,.0f} updates; with fewer than {MIN_STAGE} little is learned: train longer, or '
                'use a smaller batch'
            )
    backbone, objectives = (getattr(model, name, None) for name in ('backbone', 'objectives'))
    if isinstance(backbone, nn.Module) and isinstance(objectives, nn.Module):
        student, heads = (sum(p.numel() for p in part.parameters()) for part in (backbone, objectives))
        if heads > student:
            found.append(f'the heads have {heads:,} parameters, the student {student:,}: use a smaller decoder')
    return found


def stages_asked_for(cfg: Config) -> Stages:
    """Read the stages that a teacher of the config asks for; one if none does."""
    for teacher in (cfg.get('model', {}).get('teachers') or {}).values():
        stages = teacher.get('stages', 1)
        if stages != 1:
            return Stages((1,) * stages if isinstance(stages, int) else tuple(stages))
    return Stages((1,))


def follow(schedule: Sequence[dict[str, Any]], rate: float, length: int) -> list[float]:
    """Return the learning rate at ``TICKS`` points of a stage."""
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
    """Return the bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def memory_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> Memory:
    """Estimate the memory of weights, gradients, optimiser and teachers (all that is not trained)."""
    trained = size_of(parameter for parameter in model.parameters() if parameter.requires_grad)
    frozen = size_of(parameter for parameter in model.parameters() if not parameter.requires_grad)
    kind = type(optimizer).__name__
    states = STATES.get(kind, 1 if optimizer.defaults.get('momentum') else 0)
    return Memory(trained, trained, states * trained, frozen + size_of(model.buffers()))


@dataclass(frozen=True)
class StepResult:
    """Result of a step."""

    shape: tuple[int, ...]  #: Shape of the images that reached the model
    seconds: float  #: Time of the second step; the first includes allocations and the compilation of kernels
    losses: dict[str, float]  #: Losses by name
    peak: int  #: Bytes: the device's peak; on a CPU the growth of the process
    optimizer: int  #: Bytes of the optimiser's states


def build_for_step(cfg: Config, *, ratio: float = 1.0) -> tuple[nn.Module, Any]:
    """Build model and optimiser on the device for :func:`run_step`; a missing checkpoint leaves random weights.

    ``ratio`` multiplies the learning rate. Raises ValueError if ``load_from`` is the file of another network, or a layer needs
    an op that mmcv lacks here.
    """
    model_cfg = without_checkpoints(cfg.model.to_dict(), missing_only=True)
    options = {'data_preprocessor': cfg.get('data_preprocessor'), **model_cfg}
    torch.manual_seed(0)
    model: nn.Module = MODELS.build(ConfigDict(options))  # detectors read their options as attributes
    check_ops(model)
    if hasattr(model, 'init_weights'):
        model.init_weights()  # type: ignore[operator]
    if cfg.get('load_from') and Path(cfg.load_from).is_file():
        load_checkpoint(model, cfg.load_from, map_location='cpu', logger='silent')
    if get_device() == 'cpu':  # SyncBN needs a GPU
        model = revert_sync_batchnorm(model)
    model = model.to(get_device()).train()
    wrapper = copy.deepcopy(cfg.optim_wrapper)
    wrapper.optimizer.lr *= ratio
    wrapper.pop('accumulative_counts', None)  # the one step must update the weights
    return model, build_optim_wrapper(model, wrapper)


def fake_batch(cfg: Config, images: int) -> Any:
    """Return a batch as the training pipeline and the loader make it, from image files of noise."""
    compose = Compose(cfg.train_dataloader.dataset.pipeline)
    generator = np.random.default_rng(0)
    with TemporaryDirectory() as folder:
        samples = []
        for number in range(images):
            path = Path(folder, f'{number}.png')
            Image.fromarray(generator.integers(256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path)
            samples.append(compose(fake_sample(cfg, path, number)))
    collate = dict(cfg.train_dataloader.get('collate_fn') or {'type': 'pseudo_collate'})
    collate.pop('_scope_', None)  # mmengine's mark of a base's package
    return FUNCTIONS.get(collate.pop('type'))(samples, **collate)


def fake_sample(cfg: Config, path: Path, number: int) -> dict[str, Any]:
    """Return a sample as the dataset of the host gives it: a class, two objects, or a label map of two halves."""
    sample = dict(img_path=str(path), sample_idx=number)
    scope, dataset = cfg.get('default_scope'), cfg.train_dataloader.dataset
    if scope == 'mmdet':
        boxes = [(40, 30, 200, 180), (150, 60, 300, 240)]
        instances = [
            dict(ignore_flag=0, bbox=[x1, y1, x2, y2], bbox_label=0, mask=[[x1, y1, x2, y1, x2, y2, x1, y2]])
            for x1, y1, x2, y2 in boxes
        ]
        return dict(sample, img_id=number, height=HEIGHT, width=WIDTH, instances=instances)
    if scope == 'mmseg':
        labels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
        labels[:, WIDTH // 2 :] = 1
        Image.fromarray(labels).save(path.with_suffix('.labels.png'))
        reduce = dataset.get('reduce_zero_label', str(dataset.type).endswith('ADE20KDataset'))
        maps = dict(seg_map_path=str(path.with_suffix('.labels.png')), label_map=None, reduce_zero_label=reduce)
        return dict(sample, **maps, seg_fields=[])
    return dict(sample, gt_label=number % (cfg.model.get('head', {}).get('num_classes') or 2))


def run_step(model: nn.Module, optim_wrapper: Any, batch: Any, *, unused: bool = False) -> StepResult:
    """Run two training steps; time the second.

    Raises ValueError if a loss is not finite, or a parameter gets no gradient, which ``unused`` allows.
    """
    device = next(model.parameters()).device
    shapes: list[tuple[int, ...]] = []

    def note_shape(module: nn.Module, given: Any, made: Any) -> None:
        inputs = made['inputs']  # a batch, or one for each view
        shapes.append(tuple((inputs if isinstance(inputs, torch.Tensor) else inputs[0]).shape))

    probe = model.get_submodule('data_preprocessor').register_forward_hook(note_shape)
    before = used_memory(device)
    if not unused:
        check_next_backward(model, optim_wrapper)
    if isinstance(model, MaskedDistiller):
        model.begin_training(Progress(0, 2))
    for _ in range(2):
        synchronize(device)
        start = time.perf_counter()
        logged = model.train_step(batch, optim_wrapper)  # type: ignore[operator]
        synchronize(device)
        seconds = time.perf_counter() - start
    probe.remove()
    losses = {name: float(torch.as_tensor(value).detach()) for name, value in logged.items()}
    broken = {name: value for name, value in losses.items() if 'loss' in name and not np.isfinite(value)}
    if broken:
        raise ValueError(f'The losses of a step on noise are not finite: {broken}.')
    peak = used_memory(device) - (before if device.type == 'cpu' else 0)
    states = [value for state in optim_wrapper.optimizer.state.values() for value in state.values()]
    return StepResult(shapes[-1], seconds, losses, peak, size_of(filter(torch.is_tensor, states)))


def synchronize(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def used_memory(device: torch.device) -> int:
    """Return the peak memory so far, of the GPU or of this process, in bytes."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
