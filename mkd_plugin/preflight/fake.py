"""One training step on made-up images."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import FUNCTIONS
from PIL import Image
from torch import nn

from mkd_plugin.engine.guards import check_next_backward

HEIGHT, WIDTH = 256, 320  # of a made-up image


@dataclass(frozen=True)
class StepResult:
    """What a step gave.

    Attributes:
        shape: Of the images that reached the model.
        seconds: Of the second step; the first also pays for allocations and kernels.
        losses: By name.
        peak: Bytes: the device's peak, on a CPU what the process grew by.
        optimizer: Bytes of the optimiser's states.
    """

    shape: tuple[int, ...]
    seconds: float
    losses: dict[str, float]
    peak: int
    optimizer: int


def fake_batch(cfg: Config, images: int) -> Any:
    """A batch as the training pipeline and the loader would make it, from image files full of noise."""
    compose = Compose(cfg.train_dataloader.dataset.pipeline)
    generator = np.random.default_rng(0)
    with TemporaryDirectory() as folder:
        samples = []
        for number in range(images):
            path = Path(folder, f'{number}.png')
            Image.fromarray(generator.integers(256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path)
            samples.append(compose(fake_sample(cfg, path, number)))
    collate = dict(cfg.train_dataloader.get('collate_fn') or {'type': 'pseudo_collate'})
    collate.pop('_scope_', None)  # mmengine's mark of the package that a base came from
    return FUNCTIONS.get(collate.pop('type'))(samples, **collate)


def fake_sample(cfg: Config, path: Path, number: int) -> dict[str, Any]:
    """What the data set of the config's host says of an image: its class, two objects, or a label map of two halves."""
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


def run_step(model: nn.Module, optim_wrapper: Any, batch: Any) -> StepResult:
    """Two whole training steps; the second is timed.

    Raises:
        ValueError: A loss is not finite, or a parameter gets no gradient.
    """
    device = next(model.parameters()).device
    shapes: list[tuple[int, ...]] = []
    probe = model.get_submodule('data_preprocessor').register_forward_hook(
        lambda module, given, made: shapes.append(shape_of(made['inputs']))
    )
    before = used_memory(device)
    check_next_backward(model, optim_wrapper)
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
    optimizer = sum(value.numel() * value.element_size() for value in states if isinstance(value, torch.Tensor))
    return StepResult(shapes[-1], seconds, losses, peak, optimizer)


def shape_of(inputs: Any) -> tuple[int, ...]:
    """The shape of a batch, or of its first view."""
    return tuple((inputs if isinstance(inputs, torch.Tensor) else inputs[0]).shape)


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def used_memory(device: torch.device) -> int:
    """The peak of a GPU's memory, or of this process, so far."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
