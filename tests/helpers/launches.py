"""Count the kernels that a GPU would launch, on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# operations that return a view, or memory without values, and launch nothing
FREE = {
    *(
        'view',
        '_unsafe_view',
        'expand',
        'permute',
        'transpose',
        't',
        'unsqueeze',
        'squeeze',
        'select',
        'slice',
        'split',
    ),
    *(
        'split_with_sizes',
        'unbind',
        'detach',
        'alias',
        'as_strided',
        'empty',
        'empty_like',
        'new_empty',
        'empty_strided',
    ),
    *('unfold', 'diagonal', 'lift_fresh', '_to_copy_view', 'numpy_T', 'mT', 'new_empty_strided', 'is_same_size'),
}


class Launches(TorchDispatchMode):
    """Counts operations that compute, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in FREE:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def count_launches(function: Callable[[], Any]) -> int:
    """Run a function and return the number of operations that are not views."""
    with Launches() as launches, torch.no_grad():
        function()
    return len(launches.names)
