"""What gpu_benchmark.py steps: a model of ours, and the official code's."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmpretrain.structures import DataSample
from timing import Timing, timed
from torch import Tensor, nn
from workload import build_model, image_shape

from mkd_plugin.datasets.crops import Crop, CropForDevice, FlipOnDevice, collate_crops
from mkd_plugin.engine.compile import compile_model
from mkd_plugin.preflight.config import fit_to_device


def draw_crops(batch_size: int, device: torch.device) -> dict[str, Any]:
    """Draw a batch of random crops of images of ImageNet's mean size, as a loader gives it."""
    np.random.seed(0)  # the transforms draw from the global generator
    image = np.random.randint(0, 256, (375, 500, 3), dtype=np.uint8)
    cut, flip = CropForDevice(scale=224, crop_ratio_range=(0.2, 1.0)), FlipOnDevice(prob=0.5)
    drawn = [flip(cut(dict(img=image))) for _ in range(batch_size)]
    samples = [dict(inputs=Crop(one['img'], one['crop_order']), data_samples=DataSample()) for one in drawn]
    batch = collate_crops(samples)
    if device.type == 'cuda':
        crops = batch['inputs']
        batch['inputs'] = crops._replace(pixels=crops.pixels.pin_memory(), table_B4=crops.table_B4.pin_memory())
    return batch


def backend_for(device: torch.device) -> str:
    """Backend of torch.compile: on a CPU, where only the benchmark itself is tested, one that takes no time."""
    return 'inductor' if device.type == 'cuda' else 'eager'


def without_result(function: Callable[..., Any]) -> Callable[..., None]:
    """A function that returns nothing, so that nobody reads it from the device."""

    def run(*args: Any, **options: Any) -> None:
        function(*args, **options)

    return run


class Contestant:
    """Something that takes steps."""

    device: torch.device
    optimizer: Any
    batch_size: int

    def give(self, batch_size: int) -> None:
        """Draw a batch of another size."""
        raise NotImplementedError

    def step(self) -> Tensor:
        """Take one step; return its loss."""
        raise NotImplementedError

    def time_step(self) -> Timing:
        """Take one step and wait for it."""
        return timed(self.step, self.device)


class Ours(Contestant):
    """A model of ours with its optimiser and a batch, ready to step.

    Args:
        cfg: Config.
        batch_size: Images of a step.
        device: Where it runs.
        crops: Whether the batch is crops in the host's memory, as in training, instead of whole RGB images on the device.
        compiled: 'blocks', 'loss' or None, what to compile.
        waits: Whether clipping reads the norm of the gradient in every step, as mmengine does; a run reads it for the log.
    """

    def __init__(
        self, cfg: Config, batch_size: int, device: torch.device, *, crops: bool = True, compiled: str | None = None,
        waits: bool = False,
    ) -> None:  # fmt: skip
        cfg.launcher = 'none'
        if not crops:  # mmpretrain's exchange of channels waits for the device
            cfg.data_preprocessor.to_rgb = False
        fit_to_device(cfg)
        self.device, self.crops = device, crops
        self.model = build_model(cfg).to(device)
        if compiled is not None:
            compile_model(self.model, compiled, backend_for(device))
        self.optimizer = build_optim_wrapper(self.model, cfg.optim_wrapper)
        if self.optimizer.clip_grad_kwargs and not waits:
            self.optimizer.clip_func = without_result(self.optimizer.clip_func)
        self.give(batch_size)

    def give(self, batch_size: int) -> None:
        self.batch_size = batch_size
        if self.crops:
            self.batch = draw_crops(batch_size, self.device)
            return
        images = torch.randint(0, 256, (batch_size, *image_shape(self.model)), dtype=torch.uint8, device=self.device)
        self.batch = dict(inputs=images, data_samples=None)

    def step(self) -> Tensor:
        loss = self.model.train_step(dict(self.batch), self.optimizer)['loss']
        return torch.as_tensor(loss).detach()


class Official(Contestant):
    """The official code's networks of our sizes, driven as its training loop does.

    Args:
        folder: Its checkout.
        student: Our student, for its sizes.
        head: Our decoder's options.
        batch_size: Images of a step; they lie normalised on the device.
        device: Where it runs.
        dtype: Of autocast; the loop uses float16.
    """

    def __init__(
        self, folder: Path, student: nn.Module, head: Mapping[str, Any], batch_size: int, device: torch.device,
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        torch.backends.cudnn.benchmark = device.type == 'cuda'  # as its main_pretrain.py; free() undoes it
        self.device, self.dtype, self.side = device, dtype, student.img_size
        sizes = dict(img_size=student.img_size, patch_size=student.patch_size, embed_dim=student.arch.width)
        sizes |= dict(
            depth=student.arch.depth, num_heads=student.arch.num_heads, norm_layer=partial(nn.LayerNorm, eps=1e-6)
        )
        decoder = dict(
            decoder_embed_dim=head['width'], decoder_depth=head['depth'], decoder_num_heads=head['num_heads']
        )
        network = official_class(folder)
        self.model = network(**sizes, **decoder, norm_feature_loss=True, drop_path_rate=0.2).to(device)
        self.teacher = network(**sizes, decoder_depth=0).to(device).requires_grad_(False)
        decayed = [p for p in self.model.parameters() if p.requires_grad and p.ndim > 1]
        others = [p for p in self.model.parameters() if p.requires_grad and p.ndim <= 1]
        groups = [dict(params=others, weight_decay=0.0), dict(params=decayed, weight_decay=0.05)]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-5, betas=(0.9, 0.95))
        self.scaler = torch.amp.GradScaler(device.type, enabled=device.type == 'cuda')
        self.give(batch_size)

    def give(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.images = torch.randn(batch_size, 3, self.side, self.side, device=self.device)

    def step(self) -> Tensor:
        """Take one step, which reads the loss and waits for the device as the loop does; return the loss."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            loss, _, _ = self.model(self.images, teacher=self.teacher, mask_ratio=0.75)
        if not np.isfinite(loss.item()):
            raise ValueError('The official loss is not finite.')
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), 3.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return loss.detach()


def official_class(folder: Path) -> Any:
    """Import the official network, which uses a name that numpy has dropped."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    if not hasattr(np, 'float'):
        np.float = float  # type: ignore[attr-defined]
    from models_mae import MaskedAutoencoderViT

    return MaskedAutoencoderViT
