"""Count the kernels that a training step of dBOT ViT-B would launch on a GPU, on a CPU: operations that are no views.

PYTHONPATH=tests python benchmarks/launch_count.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from helpers.launches import Launches
from mmengine.optim import build_optim_wrapper
from torch import Tensor
from workload import build_model, read_config

from mkd_plugin.datasets.resize import resize_batch
from mkd_plugin.models.masking.block import draw_blocks

DBOT = 'dbot/dbot_vit-base-p16_8xb512-2x800e_in1k'


def count(function: Callable[[], object]) -> int:
    """Return the number of operations, those of the backward pass included."""
    with Launches() as launches:
        function()
    return len(launches.names)


def total_loss(model: torch.nn.Module, images: Tensor) -> Tensor:
    """Sum the losses of a step under bf16 autocast."""
    with torch.autocast('cpu', torch.bfloat16):
        results = model.loss(images)
    return sum(value for name, value in results.items() if name.startswith('loss_'))


def main() -> None:
    """Print the counts."""
    cfg = read_config(DBOT)
    model, images = build_model(cfg), torch.randn(2, 3, 224, 224)
    optimizer = dict(cfg.optim_wrapper.optimizer, fused=False, foreach=True)  # a CPU's fused AdamW is another
    settings = dict(optimizer=optimizer, paramwise_cfg=cfg.optim_wrapper.paramwise_cfg)
    wrapper = build_optim_wrapper(model, dict(settings, constructor=cfg.optim_wrapper.constructor))
    default = build_optim_wrapper(model, dict(settings, constructor='DefaultOptimWrapperConstructor'))
    losses: list[Tensor] = []
    print('forward', count(lambda: losses.append(total_loss(model, images))))
    print('backward', count(losses[0].backward))
    print('AdamW', count(wrapper.step), 'in', len(wrapper.param_groups), 'groups')
    print("AdamW of mmengine's constructor", count(default.step), 'in', len(default.param_groups), 'groups')
    pixels, table = torch.zeros(3 * 8 * 4 * 4, dtype=torch.uint8), torch.tensor([[16 * i, 4, 4, 0] for i in range(8)])
    print('crops', count(lambda: resize_batch(pixels, table, (4, 4), (8, 8), torch.float32)))
    start = time.perf_counter()
    draw_blocks(torch.rand(64, 4, 512), (14, 14), most=75, min_block=16, min_aspect=0.3)
    print(f'512 block masks on the host: {1000 * (time.perf_counter() - start):.0f} ms')


if __name__ == '__main__':
    main()
