"""FSDP: weights, gradients and moments of the optimiser shared out over the processes."""

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
    """mmengine's ``FSDPStrategy``, with checkpoints that are those of any other run, and can be resumed.

    The model is one unit: between two steps every process holds its share of the weights, while a step computes all of
    them. (Teachers are not trained, and whole on every process.) It runs on the CPU too.

    mmengine's own gives torch (≥ 2.1) the arguments of its state in the old order when it resumes.

    Args:
        sharding: torch's ``ShardingStrategy``: ``FULL_SHARD``, ``SHARD_GRAD_OP`` or ``HYBRID_SHARD``.
        cpu_offload: Keep the shares in the machine's memory.
        options: Of mmengine's ``BaseStrategy``; its runner gives them.

    Raises:
        ValueError: There is no such ``sharding``.
    """

    def __init__(self, *, sharding: str = 'FULL_SHARD', cpu_offload: bool = False, **options: Any) -> None:
        allowed = [name for name in ShardingStrategy.__members__ if name != 'NO_SHARD']
        if sharding not in allowed:
            raise ValueError(
                f'sharding={sharding!r}: it must be one of {allowed}. To share nothing, leave the strategy out.'
            )
        # weight decay goes by the names of parameters
        wrapper: dict[str, Any] = dict(sharding_strategy=sharding, cpu_offload=cpu_offload, use_orig_params=True)
        if get_device() == 'cpu':
            wrapper['device_id'] = 'cpu'  # by default the number of a GPU
        super().__init__(
            model_wrapper=dict(type='MMFullyShardedDataParallel', **wrapper), state_dict_cfg='full', **options
        )

    def build_optim_wrapper(self, optim_wrapper: Any, model: nn.Module | None = None) -> BaseOptimWrapper:
        """Build it while every parameter is whole: a rule such as ``flat_decay_mult`` would find 1-D shares only, and take
        the weight decay from all of them."""
        with whole_parameters(self.model if model is None else model):
            return super().build_optim_wrapper(optim_wrapper, model)

    def optim_state_dict(self) -> dict[str, Any]:
        """The optimiser's whole state, by the names of the parameters.

        On the CPU torch returns views of one buffer that it fills anew for every moment (seen with 2.14), so that all of them
        would hold the last: there each is fetched alone, and copied. From a GPU it copies them itself.
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
            fetched = FullyShardedDataParallel.optim_state_dict(
                self.model, self.optim_wrapper, {'state': one, 'param_groups': share['param_groups']}
            )
            for key, values in fetched.get('state', {}).items():  # empty but for the first process
                whole.setdefault(key, {}).update({name: value.clone() for name, value in values.items()})
        return {
            'state': whole,
            'param_groups': share['param_groups'] if not moments else fetched.get('param_groups', []),
        }

    def load_optim_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take this process's share of the optimiser's whole state."""
        share = FullyShardedDataParallel.optim_state_dict_to_load(self.model, self.optim_wrapper.optimizer, state_dict)
        self.optim_wrapper.load_state_dict(share)


def whole_parameters(model: nn.Module) -> AbstractContextManager[None]:
    """Inside, every parameter is whole on every process; what is written to it is kept. Nothing happens without FSDP.

    Args:
        model: The run's model, in its wrapper.
    """
    if isinstance(model, FullyShardedDataParallel):
        return FullyShardedDataParallel.summon_full_params(model)
    return nullcontext()


@RUNNERS.register_module()
class StrategyRunner(FlexibleRunner):
    """A ``FlexibleRunner`` (``strategy=dict(type='FSDPStrategy', …)``) whose checkpoints are those of ``Runner``.

    * ``resume=True`` takes the newest whole checkpoint: mmengine's own chooses before any hook is asked, and takes
      whatever ``last_checkpoint`` names.
    * Weights have the names that they have without a wrapper; mmengine's own prefixes DDP's with ``module.``.
    """

    def load_or_resume(self) -> None:
        """Choose the checkpoint, then load it."""
        for hook in self.hooks:
            if isinstance(hook, ExactResumeHook) and not self._has_loaded:
                hook.choose_checkpoint(self)
        super().load_or_resume()

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        """Call the hooks; what is to be saved is put in order before."""
        if fn_name == 'before_save_checkpoint':
            checkpoint = kwargs['checkpoint']
            weights = checkpoint['state_dict']
            checkpoint['state_dict'] = {name.removeprefix('module.'): value for name, value in weights.items()}
        super().call_hook(fn_name, **kwargs)
