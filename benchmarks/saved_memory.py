"""Count what a step of dBOT ViT-B holds in memory from its forward to its backward pass, under bf16 autocast on a CPU.

    python benchmarks/saved_memory.py [--official FOLDER]       (a checkout of https://github.com/liuxingbin/dbot)

Two counts, in bytes per image: the storages of the tensors that autograd saves, each once, and all storages that are alive
when the loss is computed. Both are the difference between a step of two images and one of one, so that weights, their casts
and tables do not count. Recomputation keeps tensors outside of autograd; only the second count sees them.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from gpu_benchmark_contestants import Official
from gpu_benchmark_steps import CONFIG, cached_config
from mmengine.config import Config
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from workload import LiveMemory, build_model, image_shape

Forward = Callable[[int], Tensor]  # images → loss
SELECTIVE = dict(activation_checkpointing='selective')
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    'as shipped': {},
    "activation_checkpointing='selective'": SELECTIVE,
    "precision=dict(residual='bfloat16')": dict(precision=dict(residual='bfloat16')),
    'both': dict(SELECTIVE, precision=dict(residual='bfloat16')),
    'activation_checkpointing=True': dict(activation_checkpointing=True),
}


def saved_by_autograd(forward: Forward, images: int) -> int:
    """Bytes of the storages that autograd saves, each counted once."""
    storages: dict[int, torch.UntypedStorage] = {}  # kept, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward(images)
    found = sum(storage.nbytes() for storage in storages.values())
    del loss
    return found


def alive_after(forward: Forward, images: int) -> int:
    """Bytes of all storages that the forward pass made and that are still alive when it has ended."""
    with LiveMemory([]) as memory:
        loss = forward(images)
    assert loss.requires_grad
    return memory.now


def per_image(count: Callable[[Forward, int], int], forward: Forward) -> int:
    """Bytes of an image more."""
    return count(forward, 2) - count(forward, 1)


def forward_of(model: nn.Module) -> Forward:
    """Return the forward pass of a model of ours under autocast."""

    def forward(images: int) -> Tensor:
        with torch.autocast('cpu', torch.bfloat16):
            results = model.loss(torch.zeros(images, *image_shape(model)))
        return sum((value for name, value in results.items() if name.startswith('loss_')), start=torch.zeros(()))

    return forward


def forward_of_official(cfg: Config, folder: Path) -> Forward:
    """Return the forward pass of the official networks in the sizes of a config."""
    head, student = cfg.model.objectives.feature.head, build_model(cfg).backbone
    official = Official(folder, student, head, 1, torch.device('cpu'), torch.bfloat16)

    def forward(images: int) -> Tensor:
        given = torch.zeros(images, *official.images.shape[1:])
        with torch.autocast('cpu', torch.bfloat16):
            loss: Tensor = official.model(given, teacher=official.teacher, mask_ratio=0.75)[0]
        return loss

    return forward


def config_of(setting: Mapping[str, Any], name: str = CONFIG) -> Config:
    """Read a config and change student and decoder."""
    cfg = copy.deepcopy(cached_config(name))
    for part in (cfg.model.backbone, cfg.model.objectives.feature.head):
        part.update({key: value for key, value in setting.items() if key == 'activation_checkpointing'})
    cfg.model.update({key: value for key, value in setting.items() if key == 'precision'})
    return cfg


def main(arguments: Sequence[str] | None = None) -> None:
    """Print MB per image, and over the official code's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--official', type=Path, metavar='FOLDER', help="a checkout of dBOT's official code")
    args = parser.parse_args(arguments)
    reference = 1.0
    if args.official is not None:
        official = forward_of_official(config_of({}), args.official)
        saved, alive = (per_image(count, official) / 1e6 for count in (saved_by_autograd, alive_after))
        reference = alive
        print(f'official: saved {saved:.1f} MB, alive {alive:.1f} MB')
    for name, setting in SETTINGS.items():
        forward = forward_of(build_model(config_of(setting)))
        alive = per_image(alive_after, forward) / 1e6
        saved = (
            ''
            if 'activation_checkpointing' in setting
            else f'saved {per_image(saved_by_autograd, forward) / 1e6:.1f} MB, '
        )
        print(
            f'{name}: {saved}alive {alive:.1f} MB'
            + (f', {alive / reference:.3f} of the official' if args.official else '')
        )


if __name__ == '__main__':
    main()
