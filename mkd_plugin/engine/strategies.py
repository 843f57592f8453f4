"""Training with FSDP: weights, gradients and optimiser state are sharded over the processes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from mmengine._strategy.fsdp import FSDPStrategy
from mmengine.device import get_device
from mmengine.optim import BaseOptimWrapper
from mmengine.runner import FlexibleRunner
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy

from mkd_plugin.engine.exact_resume import ExactResumeHook
from mkd_plugin.registry import RUNNERS, STRATEGIES


@STRATEGIES.register_module()
class ShardedStrategy(FSDPStrategy):
    """mmengine's ``FSDPStrategy`` with resumable checkpoints in the format of all other runs.

    The model is a single FSDP unit: between two steps every process holds its share of the weights, during a step all of
    them. Teachers are not trained and stay whole on every process. Runs on CPUs too. (On resume, mmengine's own strategy
    passes the optimiser state in an argument order that torch >= 2.1 no longer accepts.)

    Args:
        sharding: Member of torch's ``ShardingStrategy``: ``FULL_SHARD``, ``SHARD_GRAD_OP`` or ``HYBRID_SHARD``.
        cpu_offload: Keep the shares in main memory.
        options: Those of mmengine's ``BaseStrategy``, passed by its runner.

    Raises:
        ValueError: ``sharding`` is unknown.
    """

    def __init__(self, *, sharding: str = 'FULL_SHARD', cpu_offload: bool = False, **options: Any) -> None:
        allowed = [name for name in ShardingStrategy.__members__ if name != 'NO_SHARD']
        if sharding not in allowed:
            raise ValueError(
                f'sharding={sharding!r}: it must be one of {allowed}. To shard nothing, leave the strategy out.'
            )
        # use_orig_params: weight decay is chosen by the names of parameters
        wrapper: dict[str, Any] = dict(sharding_strategy=sharding, cpu_offload=cpu_offload, use_orig_params=True)
        if get_device() == 'cpu':
            wrapper['device_id'] = 'cpu'  # the default is a GPU's number
        super().__init__(
            model_wrapper=dict(type='MMFullyShardedDataParallel', **wrapper), state_dict_cfg='full', **options
        )

    def build_optim_wrapper(self, optim_wrapper: Any, model: nn.Module | None = None) -> BaseOptimWrapper:
        """Build it while the parameters are whole: shares are 1-D, and ``flat_decay_mult`` would remove all weight decay."""
        with whole_parameters(self.model if model is None else model):
            return super().build_optim_wrapper(optim_wrapper, model)

    def optim_state_dict(self) -> dict[str, Any]:
        """Gather the optimiser's state by parameter names.

        On CPUs torch (seen with 2.14) returns views of one buffer that it refills for every moment, so that all would hold
        the last one. There each moment is gathered alone and copied; from a GPU torch copies them itself.
        """
        if get_device() != 'cpu':
            return dict(super().optim_state_dict())
        share = self.optim_wrapper.state_dict()
        moments = {name for values in share['state'].values() for name, value in values.items() if value.ndim}
        whole: dict[str, Any] = {}
        for moment in sorted(moments):
            one = {
                key: {name: value for name, value in values.items() if name == moment or not value.ndim}
                for key, values in share['state'].items()
            }
            gathered = FullyShardedDataParallel.optim_state_dict(
                self.model, self.optim_wrapper, {'state': one, 'param_groups': share['param_groups']}
            )
            for key, values in gathered.get('state', {}).items():  # empty except on rank 0
                whole.setdefault(key, {}).update({name: value.clone() for name, value in values.items()})
        groups = gathered.get('param_groups', []) if moments else share['param_groups']
        return {'state': whole, 'param_groups': groups}

    def load_optim_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load this process's share of the optimiser's state."""
        share = FullyShardedDataParallel.optim_state_dict_to_load(self.model, self.optim_wrapper.optimizer, state_dict)
        self.optim_wrapper.load_state_dict(share)


def whole_parameters(model: nn.Module) -> AbstractContextManager[None]:
    """Gather every parameter on every process inside the context, and keep what is written to them. No effect without FSDP."""
    if isinstance(model, FullyShardedDataParallel):
        return FullyShardedDataParallel.summon_full_params(model)
    return nullcontext()


@RUNNERS.register_module()
class StrategyRunner(FlexibleRunner):
    """A ``FlexibleRunner`` (``strategy=dict(type='FSDPStrategy', …)``) whose checkpoints equal those of ``Runner``.

    * ``resume=True`` takes the newest complete checkpoint. mmengine's own runner chooses before any hook is called, and
      takes whatever ``last_checkpoint`` names.
    * Weights are saved without the wrapper's prefix; mmengine's own runner saves DDP's as ``module.…``.
    """

    def load_or_resume(self) -> None:
        """Choose the checkpoint, then load it."""
        for hook in self.hooks:
            if isinstance(hook, ExactResumeHook) and not self._has_loaded:
                hook.choose_checkpoint(self)
        super().load_or_resume()

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        """Call the hooks; before saving, remove the wrapper's prefix."""
        if fn_name == 'before_save_checkpoint':
            checkpoint = kwargs['checkpoint']
            weights = checkpoint['state_dict']
            checkpoint['state_dict'] = {name.removeprefix('module.'): value for name, value in weights.items()}
        super().call_hook(fn_name, **kwargs)
