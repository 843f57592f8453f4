"""Losses and gradient norms that stay on the device until a line of the log needs them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.hooks import RuntimeInfoHook
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor

from mkd_plugin.registry import HOOKS


@HOOKS.register_module()
class LazyScalarsHook(RuntimeInfoHook):
    """mmengine's ``RuntimeInfoHook`` for training without a wait for the device in every step.

    mmengine reads each logged value and the gradient norm at once, so that every step waits until the device is done, and
    the device then waits for the next step. Here tensors are kept until somebody asks the message hub for a value: the log at
    its interval, a checkpoint, or the end of the run. All values are then read in one transfer, and are the same as before.
    """

    def before_train(self, runner: Runner) -> None:
        """Make the message hub lazy, and let gradient clipping hand its norm to it as a tensor."""
        super().before_train(runner)
        hub = runner.message_hub
        if not isinstance(hub, LazyMessageHub):
            hub.__class__, hub.pending = LazyMessageHub, {}
        if isinstance(runner.optim_wrapper, OptimWrapper) and runner.optim_wrapper.clip_grad_kwargs:
            keep_norm(runner.optim_wrapper, hub)


class LazyMessageHub(MessageHub):
    """A message hub that keeps tensors of one element as they are until a value is asked for."""

    pending: dict[str, list[tuple[Tensor, int]]]  # (value, count) by name

    def update_scalar(self, key: str, value: Any, count: int = 1, resumed: bool = True) -> None:
        """Append a value to a history; arguments as mmengine's."""
        if isinstance(value, Tensor) and value.numel() == 1:
            self._set_resumed_keys(key, resumed)
            self.pending.setdefault(key, []).append((value.detach().reshape(()), count))
        else:
            if key in self.pending:  # keep the order
                self.read()
            super().update_scalar(key, value, count, resumed)

    def read(self) -> None:
        """Read what is pending. Histories are copied once, not for each value: those of a long run have megabytes."""
        pending, self.pending = self.pending, {}
        numbers = iter(read_together([value for entries in pending.values() for value, _ in entries]))
        for key, entries in pending.items():
            buffer = self._log_scalars.get(key) or HistoryBuffer()
            history = np.append(buffer.data[0], [next(numbers) for _ in entries])[-buffer.max_length :]
            counts = np.append(buffer.data[1], [count for _, count in entries])[-buffer.max_length :]
            self._log_scalars[key] = HistoryBuffer(history, counts, buffer.max_length)

    @property
    def log_scalars(self) -> Any:
        """All histories, complete."""
        self.read()
        return super().log_scalars

    def get_scalar(self, key: str) -> HistoryBuffer:
        """One history, complete. mmengine's timer asks for its own after every step, which must read nothing."""
        return (
            self._log_scalars[key] if key in self._log_scalars and key not in self.pending else super().get_scalar(key)
        )

    def state_dict(self) -> dict[str, Any]:
        """All that a checkpoint holds."""
        self.read()
        state: dict[str, Any] = super().state_dict()
        return state


def read_together(values: Sequence[Tensor]) -> list[float]:
    """Read scalars in one transfer for each device and type."""
    kinds: dict[Any, list[int]] = defaultdict(list)
    for place, value in enumerate(values):
        kinds[value.device, value.dtype].append(place)
    numbers = [0.0] * len(values)
    for places in kinds.values():
        for place, number in zip(places, torch.stack([values[place] for place in places]).tolist(), strict=True):
            numbers[place] = number
    return numbers


def keep_norm(optim_wrapper: OptimWrapper, hub: MessageHub) -> None:
    """Make gradient clipping hand its norm to the hub. mmengine converts to a number what the function returns, if any."""
    clip, name = optim_wrapper.clip_func, f'train/{optim_wrapper.grad_name}'

    def clip_func(parameters: list[Tensor], **options: Any) -> None:
        norm = clip(parameters, **options)
        if norm is not None:
            hub.update_scalar(name, norm)

    optim_wrapper.clip_func = clip_func
