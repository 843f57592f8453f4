"""Choose the kernels of attention for a run."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import torch
from mmengine.dist import broadcast_object_list, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn
from torch.nn.attention import SDPBackend
from torch.utils.benchmark import Timer

from mkd_plugin.engine.run_utils import bare_model, images_per_step
from mkd_plugin.models.distiller import MaskedDistiller
from mkd_plugin.models.vit import VisionTransformer
from mkd_plugin.models.vit.attention import Attention, attend_by, attend_by_flex
from mkd_plugin.registry import HOOKS


@HOOKS.register_module()
class AttentionHook(Hook):
    """Times PyTorch's kernels for attention before training, in the sizes of this run, and keeps each network's fastest.

    The choice of the first process holds for all, and checkpoints contain it: a resumed run computes with the same kernels.
    Networks with a relative position bias, for which there is hardly a choice, keep PyTorch's.

    Args:
        flex: Compute the student's attention with a relative position bias by FlexAttention.

    Raises ValueError before training if the model is no MaskedDistiller, or for ``flex`` without CUDA or without such a bias.
    """

    def __init__(self, *, flex: bool = False) -> None:
        self.flex = flex

    def before_train(self, runner: Runner) -> None:
        """Choose the kernels for the loader's batch, before the first step compiles them."""
        model = bare_model(runner)
        if not isinstance(model, MaskedDistiller):
            raise ValueError(f'AttentionHook: {type(model).__name__} is no MaskedDistiller. Remove the hook.')
        device = next(model.parameters()).device
        if self.flex:
            use_flex(model.backbone, device)
        networks = list(sizes_of(model, images_per_step(runner) // get_world_size()))
        chosen: dict[str, str] = dict(runner.message_hub.get_info('attention_kernels', {}))
        for _, shape, trained in networks:
            if f'{shape}, {trained}' not in chosen:
                with runner.optim_wrapper.optim_context(model):
                    times = times_of(shape, trained, device)
                chosen[f'{shape}, {trained}'] = min(times, key=lambda name: times[name])
                runner.logger.info(f'AttentionHook: {shape}, trained={trained}, seconds by kernel: {times}')
        broadcast_object_list(shared := [chosen])
        runner.message_hub.update_info('attention_kernels', shared[0])  # which checkpoints contain
        for layers, shape, trained in networks:
            fastest = SDPBackend.__members__[shared[0][f'{shape}, {trained}']]
            for layer in layers:  # the math kernel is for inputs that the fastest does not take
                layer.attend = partial(attend_by, [fastest, SDPBackend.MATH])


def sizes_of(model: MaskedDistiller, images: int) -> Iterator[tuple[list[Attention], tuple[int, ...], bool]]:
    """Yield each network's attention layers, (B, H, N, K), and whether it is trained; its last layer may compute less."""
    masking = model.masking
    parts: list[tuple[nn.Module, bool, bool]] = [(model.backbone, model.backbone.sees_all, True)]
    parts += [(objective, True, True) for objective in model.objectives.values()]
    parts += [(teacher, teacher.sees_all, False) for teacher in model.teachers.values()]
    for part, sees_all, trained in parts:
        batch = images * (masking.per_image if trained or not sees_all else 1)
        for network in [module for module in part.modules() if hasattr(module, 'stream')]:
            layers = [module for module in network.modules() if isinstance(module, Attention)]
            tokens = getattr(network, 'num_prefix', 1) + (masking.num_patches if sees_all else masking.num_visible)
            channels = layers[0].proj.in_features // layers[0].num_heads
            if getattr(network, 'relative_position', None) is None:
                yield layers, (batch, layers[0].num_heads, tokens, channels), trained


def times_of(shape: tuple[int, ...], trained: bool, device: torch.device) -> dict[str, float]:
    """Time each kernel that takes this shape, forward and, if it is trained, backward: seconds by its name."""
    qkv = [torch.ones(shape, device=device, requires_grad=trained) for _ in range(3)]  # autocast converts them
    times = {}

    def run(backend: SDPBackend) -> None:
        out = attend_by([backend], *qkv)
        if trained:
            torch.autograd.grad(out, qkv, out.detach())

    for name, backend in SDPBackend.__members__.items():
        timer = Timer('run(backend)', globals=dict(run=run, backend=backend), num_threads=torch.get_num_threads())
        with warnings.catch_warnings(), suppress(RuntimeError):  # no such kernel here, or too little memory for it
            warnings.simplefilter('ignore')  # torch says why a kernel does not take the input
            times[name] = timer.timeit(5).mean
    return times


def use_flex(student: VisionTransformer, device: torch.device) -> None:
    """Switch a student to FlexAttention. Raises ValueError if it has no bias, or the device no such gradients."""
    relative = getattr(student, 'relative_position', None)
    if device.type != 'cuda' or relative is None:
        found = f'relative_position={relative} on {device.type}'
        raise ValueError(
            f'AttentionHook(flex=True): it needs a relative position bias and CUDA, not {found}. Leave it out.'
        )
    from torch.nn.attention.flex_attention import flex_attention  # torch 2.5 or newer

    compiled = torch.compile(flex_attention, dynamic=False)
    for layer in [module for module in student.modules() if isinstance(module, Attention)]:
        layer.attend = partial(attend_by_flex, compiled)
