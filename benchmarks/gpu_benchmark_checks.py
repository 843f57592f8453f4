"""Sections of gpu_benchmark.py that look whether the device works and is right; tests/gpu asserts the same figures."""

from __future__ import annotations

import copy
import dataclasses
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from gpu_benchmark_contestants import backend_for, draw_crops
from gpu_benchmark_device import BACKENDS, NETWORKS, if_possible
from gpu_benchmark_steps import CONFIG, Row, Setup
from mmengine.config import Config
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map
from workload import build_model, image_shape, read_config

import mkd_plugin
from mkd_plugin.datasets.resize import resize_batch
from mkd_plugin.engine.compile import compile_model
from mkd_plugin.models.precision import set_precision
from mkd_plugin.structures import TokenMask

METHODS = {
    name: f'{folder}/{config}_digits'
    for name, folder, config in (
        ('dBOT', 'dbot', 'dbot'),
        ('DMAE', 'dmae', 'dmae'),
        ('Hybrid Distill', 'hybrid_distill', 'hybrid'),
        ('MaskDistill', 'maskdistill', 'maskdistill'),
    )
}


class Errors(NamedTuple):
    """Relative errors against float64 on a CPU."""

    loss: float
    gradient: float  #: Of all gradients as one vector
    worst: float  #: Of the parameter whose gradient differs most, as far as it has any


# What float32 and bfloat16 autocast may differ by.
BOUNDS = {torch.float32: Errors(1e-5, 1e-4, 1e-3), torch.bfloat16: Errors(1e-2, 3e-2, 0.15)}


def smoke(setup: Setup) -> Iterator[Row]:
    """Say what the machine is, and try what the other sections need."""
    yield dict(
        row='software', python=platform.python_version(), torch=torch.__version__, cuda=str(torch.version.cuda),
        cudnn=torch.backends.cudnn.version(), mkd_plugin=mkd_plugin.__version__,
    )  # fmt: skip
    found: Row = dict(device=platform.processor() or platform.machine(), cores=len(os.sched_getaffinity(0)))
    if setup.device.type == 'cuda':
        card = torch.cuda.get_device_properties(0)
        found = dict(device=card.name, capability=f'{card.major}.{card.minor}', gib=card.total_memory / 2**30)
        found |= dict(multiprocessors=card.multi_processor_count, cores=len(os.sched_getaffinity(0)))
        found |= dict(bfloat16=torch.cuda.is_bf16_supported(including_emulation=False))
    yield dict(row='hardware', **found)

    def compiled() -> Row:
        function = torch.compile(lambda x: x * 2 + 1, backend=backend_for(setup.device), dynamic=False)
        return dict(works=bool((function(torch.ones(8, device=setup.device)) == 3).all()))

    yield from setup.run({'torch.compile': compiled})


def method_errors(
    cfg: Config, device: torch.device, dtype: torch.dtype, *, batch_size: int = 8, compiled: bool = False,
    precision: Mapping[str, str] | None = None,
) -> Errors:  # fmt: skip
    """Compare loss and gradients on a device with those on a CPU in float64: the same weights, images and masks.

    Args:
        cfg: A method's config; its networks get random weights.
        device: Where the compared model runs.
        dtype: float32, or bfloat16 for autocast.
        batch_size: Images.
        compiled: Whether to compile the blocks.
        precision: Types of residual streams and teachers of the compared model.
    """
    torch.manual_seed(0)
    cfg.model.backbone.drop_path_rate = 0.0  # drawn by the device
    for objective in cfg.model.objectives.values():
        objective.get('head', {}).pop('drop_path_rate', None)
    reference = build_model(cfg).double()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)  # zero biases and unit norms would hide mistakes
    tested = copy.deepcopy(reference).float().to(device)
    if precision is not None:
        set_precision(tested, **precision)
    images = torch.randn(batch_size, *image_shape(reference), dtype=torch.float64)
    masks: list[TokenMask] = []
    reference.masking.register_forward_hook(lambda module, args, mask: masks.append(mask))
    wanted_loss, wanted = loss_and_gradients(reference, images)
    tested.masking.forward = lambda *_: moved(masks[0], device)
    if compiled:
        compile_model(tested, 'blocks', backend_for(device))
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss, found = loss_and_gradients(tested, images.float().to(device))
    apart = {name: (found[name] - wanted[name]).norm() for name in wanted}
    norm = torch.stack([gradient.norm() for gradient in wanted.values()]).norm()
    worst = max(apart[name] / max(gradient.norm(), 1e-3 * norm) for name, gradient in wanted.items())
    total = torch.stack(list(apart.values())).norm() / norm
    return Errors(abs(loss - wanted_loss) / abs(wanted_loss), total.item(), float(worst))


def loss_and_gradients(model: nn.Module, images: Tensor) -> tuple[float, dict[str, Tensor]]:
    """The loss, and the gradient of each parameter in float64 on the CPU."""
    loss, _ = model.parse_losses(model.loss(images))
    loss.backward()
    gradients = {name: p.grad.double().cpu() for name, p in model.named_parameters() if p.grad is not None}
    return loss.item(), gradients


def moved(mask: TokenMask, device: torch.device) -> TokenMask:
    """Copy a mask to another device."""
    fields = {field.name: getattr(mask, field.name) for field in dataclasses.fields(mask)}
    return TokenMask(**tree_map(lambda value: value.to(device) if isinstance(value, Tensor) else value, fields))


def attention_error(backend: SDPBackend, device: torch.device, dtype: torch.dtype, network: str) -> float:
    """Relative error of attention and its gradients against float64 on a CPU, in the sizes of one of ``NETWORKS``."""
    tokens, width, heads = NETWORKS[network]
    torch.manual_seed(0)
    given = [torch.randn(4, heads, tokens, width // heads).to(dtype) for _ in range(4)]
    results = []
    for at, kind, chosen in (('cpu', torch.float64, SDPBackend.MATH), (device, dtype, backend)):
        *qkv, grad = (value.to(at, kind).requires_grad_() for value in given)
        with sdpa_kernel(chosen):
            out = F.scaled_dot_product_attention(*qkv)
            results.append([out, *torch.autograd.grad(out, qkv, grad)])
    wanted, found = (torch.cat([value.detach().double().cpu().flatten() for value in result]) for result in results)
    return float((found - wanted).norm() / wanted.norm())


def crop_levels(device: torch.device, batch_size: int = 32) -> int:
    """Most 8-bit levels between crops resized by the batch on the device and one by one on the CPU."""
    crops = draw_crops(batch_size, torch.device('cpu'))['inputs']
    dtype = torch.float16 if device.type == 'cuda' else torch.float32
    batched = resize_batch(crops.pixels.to(device), crops.table_B4.to(device), crops.largest, crops.size, dtype)
    return int((batched.cpu().int() - crops.images().int()).abs().max())


def correctness(setup: Setup) -> Iterator[Row]:
    """Compare the four methods, attention and crops with the CPU."""

    def method(read: Callable[[], Config], dtype: torch.dtype, **options: Any) -> Row:
        errors = method_errors(read(), setup.device, dtype, **options)
        within = all(error <= bound for error, bound in zip(errors, BOUNDS[dtype], strict=True))
        return {**errors._asdict(), 'within': within}

    def attention(backend: SDPBackend, network: str) -> Row:
        return dict(gradient=attention_error(backend, setup.device, torch.bfloat16, network))

    def crops() -> Row:
        levels = crop_levels(setup.device)
        return dict(levels=levels, within=levels <= 2)

    rows: dict[str, Callable[[], Row]] = {}
    configs: Mapping[str, tuple[Callable[[], Config], int]] = {
        name: (partial(read_config, config), 8) for name, config in METHODS.items()
    } | {'dBOT ViT-B': (partial(setup.config, CONFIG), 2)}
    for name, (read, batch_size) in configs.items():
        for dtype in BOUNDS:
            rows[f'{name}, {str(dtype)[6:]}'] = partial(method, read, dtype, batch_size=batch_size)
    rows['dBOT, float32, compiled blocks'] = partial(method, configs['dBOT'][0], torch.float32, compiled=True)
    rows['crops'] = crops
    if setup.device.type == 'cuda':
        for name, backend in BACKENDS.items():
            rows[f'attention, {name}'] = partial(if_possible, partial(attention, backend, 'decoder'))
    yield from setup.run(rows)
