"""Training with FSDP2: weights, gradients and optimiser moments are sharded over the processes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mmengine
import torch
from mmengine._strategy import DDPStrategy
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.optim import AmpOptimWrapper, BaseOptimWrapper
from mmengine.runner import FlexibleRunner
from mmengine.runner.checkpoint import save_checkpoint
from torch import nn
from torch.distributed import new_group

from mkd_plugin.checkpoint.read import RUN_FILE, read_checkpoint
from mkd_plugin.engine import sharding
from mkd_plugin.engine.exact_resume import ExactResumeHook
from mkd_plugin.engine.shard_files import begin_shards, check_pieces, read_shards
from mkd_plugin.engine.sharding import is_share, on_rank_0, share_of, whole_of
from mkd_plugin.models.distiller import MaskedDistiller
from mkd_plugin.registry import RUNNERS, STRATEGIES

PRECISIONS = (None, 'bfloat16', 'float16')


@STRATEGIES.register_module()
class ShardedStrategy(DDPStrategy):
    """PyTorch's FSDP2 (``fully_shard``): each process holds its share of weights, gradients and optimiser moments.

    Every transformer block of student and heads is a unit, gathered while it is computed; the rest of the model is one
    more. Runs on CPUs too.

    A run resumes from folders (:mod:`.shard_files`) to which each process writes its share, with any number of processes. Stage
    ends, the best and the last checkpoint are files like DDP's, from which either can resume.

    Args:
        shard_teachers: Shard teachers that are ViTs as well, and the ``blocks`` of timm's. Momentum teachers then follow, and
            stages promote, share by share. With False every process holds all teachers, and a momentum teacher gathers the
            student at every step. timm's networks without ``blocks`` and teachers of mmpretrain are always whole.
        param_dtype: 'bfloat16' or 'float16' gathers weights in this type, with half the traffic; gradients are summed in
            float32, and the shares stay float32. For GPUs, with ``AmpOptimWrapper`` (``--amp``).
        options: Those of mmengine's ``BaseStrategy``, passed by its runner.

    Raises:
        ValueError: This PyTorch has no FSDP2; ``param_dtype`` is unknown, or set without ``AmpOptimWrapper``.
    """

    beside = False  # whether ``save_checkpoint`` returns once the shares are copied, and leaves the rest to ``finish``
    finish: Callable[[], None] | None = None  # None after a checkpoint that is a file

    def __init__(self, *, shard_teachers: bool = True, param_dtype: str | None = None, **options: Any) -> None:
        if sharding.fully_shard is None:
            raise ValueError(
                f'ShardedStrategy needs torch >= 2.6, and this is {torch.__version__}. Update torch, or leave the strategy '
                'out to train with DDP.'
            )
        if param_dtype not in PRECISIONS:
            raise ValueError(f'param_dtype={param_dtype!r}: use one of {list(PRECISIONS)}.')
        self.shard_teachers, self.param_dtype = shard_teachers, param_dtype
        super().__init__(**options)

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        model = self.convert_model(model.to(get_device()))
        self.saved = set(model.state_dict())  # sharded teachers become parameters, which are always in a state dict
        self.sharding = sharding.shard_options(self.param_dtype)
        sharding.shard_trained(model, self.sharding)
        # a group of its own: the thread that writes must not disturb the order of training's messages
        self.writers = new_group(backend='gloo')
        return model

    def build_optim_wrapper(self, optim_wrapper: Any, model: nn.Module | None = None) -> BaseOptimWrapper:
        """Build it, then shard the teachers: the optimiser would list their parameters."""
        built = super().build_optim_wrapper(optim_wrapper, model)
        if self.param_dtype and not isinstance(built, AmpOptimWrapper):
            raise ValueError(
                f'param_dtype={self.param_dtype!r} needs mixed precision: add --amp (AmpOptimWrapper) and a device that has '
                'it, or leave param_dtype out.'
            )
        if built.clip_grad_kwargs:
            clip = built.clip_func
            built.clip_func = lambda *args, **options: whole_of(clip(*args, **options))  # for the log: a plain tensor
        if self.shard_teachers and isinstance(model, MaskedDistiller):
            sharding.shard_teachers(model, self.sharding)
        return built

    def save_checkpoint(
        self,
        filename: str,
        *,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        extra_ckpt: dict[str, Any] | None = None,
        callback: Any = None,
    ) -> None:
        """Write a folder of shares, or gather the state on rank 0 and write a file; every process must call it."""
        scheduled = save_param_scheduler and hasattr(self, 'param_schedulers')
        rest: dict[str, Any] = {'param_schedulers': self.scheduler_state_dict()} if scheduled else {}
        rest.update(extra_ckpt or {})
        meta = rest.setdefault('meta', {})
        meta.update(seed=self.seed, time=time.strftime('%Y%m%d_%H%M%S'), mmengine=mmengine.__version__)
        last = meta.get('iter', 0) >= self.dispatch_kwargs.get('max_iters', math.inf)
        shares = save_optimizer and not last and '://' not in filename
        self.finish = None
        own = self.model.state_dict()
        weights = {name: own[name] for name in own if name in self.saved}
        if save_optimizer:
            state = self.optim_state_dict()  # its inner dicts are the optimiser's own
            rest['optimizer'] = {**state, 'state': {index: dict(own) for index, own in state['state'].items()}}
        if shares:
            self._save_shares(Path(filename), weights, rest, callback)
            return
        rest['state_dict'] = {name: on_rank_0(value) for name, value in weights.items()}
        for values in rest['optimizer']['state'].values() if save_optimizer else ():
            values.update({name: on_rank_0(value) for name, value in values.items()})
        if is_main_process():
            if callback is not None:
                callback(rest)
            save_checkpoint(rest, filename)

    def _save_shares(self, folder: Path, weights: dict[str, Any], rest: dict[str, Any], callback: Any) -> None:
        tensors = {f'model.{name}': value for name, value in weights.items()}
        for index, values in rest['optimizer']['state'].items():
            for name in [name for name, value in values.items() if is_share(value)]:
                tensors[f'optimizer.{index}.{name}'] = values[name]
                values[name] = None
        rest['state_dict'] = {name: value.to_local() if is_share(value) else value for name, value in weights.items()}
        if callback is not None:
            callback(rest)  # its checks see this process's share
        del rest['state_dict']
        self.finish = begin_shards(folder, tensors, rest, self.writers)
        if not self.beside:
            self.finish()

    def load_checkpoint(self, filename: str, *, map_location: Any = 'cpu', callback: Any = None, **options: Any) -> Any:
        """Load this process's share of a checkpoint; a file is read into main memory, whatever ``map_location`` says."""
        folder = Path(filename)
        if not folder.is_dir():
            return super().load_checkpoint(filename, map_location='cpu', callback=callback, **options)
        self.logger.info(f'Load the shares in {folder}')
        check_pieces(folder)
        checkpoint = read_checkpoint(folder / RUN_FILE)
        if callback is not None:
            callback(checkpoint)
        own = self.model.state_dict()
        tensors = {f'model.{name}': own[name] for name in own if name in self.saved}
        if hasattr(self, 'optim_wrapper'):
            owners = self._owners()
            for index, values in checkpoint['optimizer']['state'].items():
                for name in [name for name, value in values.items() if value is None]:
                    values[name] = tensors[f'optimizer.{index}.{name}'] = torch.empty_like(owners[index].detach())
        read_shards(folder, tensors)
        self.load_model_state_dict(own, **options)
        return checkpoint

    def _owners(self) -> list[nn.Parameter]:
        """The parameters in the order in which the optimiser's state counts them."""
        return [parameter for group in self.optim_wrapper.param_groups for parameter in group['params']]

    def load_model_state_dict(self, state_dict: dict[str, Any], **options: Any) -> None:
        """Load this process's share of the weights; options as of mmengine's strategies."""
        own = self.model.state_dict()
        shares = {name: share_of(value, own.get(name)) for name, value in state_dict.items()}
        super().load_model_state_dict({**{name: own[name] for name in own.keys() - self.saved}, **shares}, **options)

    def load_optim_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load this process's share of the optimiser's moments."""
        owners = self._owners()
        shares = {
            index: {name: share_of(value, owners[index]) for name, value in values.items()}
            for index, values in state_dict['state'].items()
        }
        self.optim_wrapper.load_state_dict({**state_dict, 'state': shares})


@RUNNERS.register_module()
class StrategyRunner(FlexibleRunner):
    """A ``FlexibleRunner`` (``strategy=dict(type='DDPStrategy', …)``) whose checkpoints equal those of ``Runner``.

    * ``resume=True`` takes the newest complete checkpoint. mmengine's own runner chooses before any hook is called, and
      takes whatever ``last_checkpoint`` names.
    * Weights are saved without the wrapper's prefix; mmengine's own runner saves DDP's as ``module.…``.
    * A checkpoint's ``meta`` has the epoch and iteration that it was given; mmengine's own runner counts again.
    """

    def load_or_resume(self) -> None:
        """Choose the checkpoint, then load it."""
        for hook in self.hooks:
            if isinstance(hook, ExactResumeHook) and not self._has_loaded:
                hook.choose_checkpoint(self)
        super().load_or_resume()

    def build_param_scheduler(self, scheduler: Any) -> Any:
        """Build the schedulers of a new stage, and let the strategy save these."""
        self.strategy.param_schedulers = self.strategy.build_param_scheduler(scheduler, self.optim_wrapper)
        return self.strategy.param_schedulers

    def save_checkpoint(self, out_dir: str, filename: str, *, meta: Any = None, **options: Any) -> None:
        """Save; arguments as of ``Runner``."""
        self.position = dict(meta or {})
        options['by_epoch'] = self.position.get('iter') == self.iter  # for the iteration that strategies see
        super().save_checkpoint(out_dir, filename, meta=meta, **options)

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        """Call the hooks; before saving, remove the wrapper's prefix and restore the position."""
        if fn_name == 'before_save_checkpoint':
            checkpoint = kwargs['checkpoint']
            weights = checkpoint['state_dict']
            checkpoint['state_dict'] = {name.removeprefix('module.'): value for name, value in weights.items()}
            checkpoint['meta'].update(self.position)
        super().call_hook(fn_name, **kwargs)
