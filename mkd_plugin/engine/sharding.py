"""Weights in shares, one for each process: PyTorch's FSDP2 applied to a model, and conversions between shares and wholes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.dist import get_world_size, is_main_process
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from mkd_plugin.models.distiller import MaskedDistiller
from mkd_plugin.models.teachers import TimmTeacher
from mkd_plugin.models.vit import Block, VisionTransformer

DTensor: Any = ()  # isinstance(x, ()) is False
fully_shard: Any = None  # torch < 2.6
try:
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
    from torch.distributed.tensor import DTensor, distribute_tensor
except ImportError:
    pass


def shard_options(param_dtype: str | None) -> dict[str, Any]:
    """Build the options of ``fully_shard`` for all modules of a model: one mesh of all processes, and the dtypes."""
    types = {} if param_dtype is None else dict(param_dtype=getattr(torch, param_dtype), reduce_dtype=torch.float32)
    policy = MixedPrecisionPolicy(**types, cast_forward_inputs=False)
    return dict(mesh=init_device_mesh(get_device(), (get_world_size(),)), mp_policy=policy)


def shard_trained(model: nn.Module, options: dict[str, Any]) -> None:
    """Shard all parameters of a model: each block of student and heads by itself, the rest as one unit."""
    warnings.filterwarnings('ignore', 'FSDP2-wrapped module')  # of views that nothing writes to
    shard_blocks(model, options)
    fully_shard(model, **options)


def shard_teachers(model: MaskedDistiller, options: dict[str, Any]) -> None:
    """Shard the teachers that are ViTs, and the blocks of timm's: frozen weights become parameters that need no gradient."""
    parts = [module for teacher in model.teachers.values() for module in teacher.modules()]
    for network in [module for module in parts if isinstance(module, VisionTransformer)]:
        thaw(network)
        shard_blocks(network, options)
        fully_shard(network, **options)
    for network in [module.network for module in parts if isinstance(module, TimmTeacher)]:
        for block in [module for module in getattr(network, 'blocks', ()) if type(module) is not nn.ModuleList]:
            thaw(block)
            fully_shard(block, **options)


def thaw(network: nn.Module) -> None:
    """Turn the weights that ``freeze`` made buffers into parameters again, which need no gradient."""
    for module in network.modules():
        for name in getattr(module, 'frozen_names', ()):
            weight: Any = module._buffers.pop(name)
            module.register_parameter(name, nn.Parameter(weight, requires_grad=False))


def shard_blocks(network: nn.Module, options: dict[str, Any]) -> None:
    """Make every block with parameters a unit, gathered whenever it is called."""
    for block in [module for module in network.modules() if isinstance(module, Block)]:
        if any(True for _ in block.parameters()):  # the weights of a whole teacher are buffers
            fully_shard(block, **options)
            register_fsdp_forward_method(block, 'stop_inside')


def is_share(value: Any) -> bool:
    """Whether a value is a process's share of a tensor."""
    return isinstance(value, DTensor)


def share_of(whole: Any, own: Any) -> Any:
    """This process's share of a tensor, if ``own`` is sharded; otherwise the value as it is. Nothing is sent."""
    if not is_share(own) or is_share(whole) or whole.shape != own.shape:
        return whole
    whole = whole.detach().to(own.device)
    return distribute_tensor(whole, own.device_mesh, own.placements, src_data_rank=None)


def whole_of(value: Any) -> Any:
    """Gather a tensor on every process, if it is sharded. Every process must call it."""
    return value.full_tensor() if is_share(value) else value


def on_rank_0(tensor: Any) -> Any:
    """Gather a tensor in the main memory of rank 0; None on the others. Every process must call it."""
    whole = whole_of(tensor)
    if not is_main_process():
        return None
    return whole.cpu() if isinstance(whole, Tensor) else whole


@contextmanager
def whole_parameters(*modules: nn.Module) -> Iterator[None]:
    """Gather every parameter on every process inside the context, and keep what is written to them."""
    parts = [part for module in modules for part in module.modules()]
    shares = []
    for part in parts:
        if DTensor and isinstance(part, FSDPModule):
            part.reshard()  # after a validation the outermost unit is still whole
        shares += [(part, name, p) for name, p in part.named_parameters(recurse=False) if is_share(p)]
    for part, name, share in shares:
        setattr(part, name, nn.Parameter(whole_of(share.detach()), share.requires_grad))
    try:
        yield
    finally:
        for part, name, share in shares:
            share.detach().copy_(share_of(getattr(part, name), share))
            setattr(part, name, share)


def readable_student(model: MaskedDistiller) -> AbstractContextManager[None]:
    """Context in which teachers follow the student: sharded ones share by share, others with the student gathered."""
    whole = any(
        teacher.changes and not any(is_share(p) for p in teacher.parameters()) for teacher in model.teachers.values()
    )
    return whole_parameters(model.backbone) if whole else nullcontext()
