"""Check the values of weights: floating-point numbers, and finite ones where a conversion is to be certified."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mkd_plugin.checkpoint.read import CheckpointError


def check_floating(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str | Path) -> None:
    """Raise CheckpointError if a file has complex, integer, bool or quantised numbers where a network has real ones.

    A copy would drop imaginary parts and scales without a word.

    Args:
        tensors: The file's tensors by the network's names.
        own: The network's tensors.
        source: The file, for messages.
    """
    wrong = [
        f'{name} is {str(tensor.dtype).removeprefix("torch.")}'
        for name, tensor in tensors.items()
        if name in own and own[name].is_floating_point() and not tensor.is_floating_point()
    ]
    if wrong:
        raise CheckpointError(
            f'{source} holds {len(wrong)} weights that are no floating-point numbers: {"; ".join(wrong[:4])}. Convert them '
            'to float32 with the program that wrote the file.'
        )


def nonfinite_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors with a NaN or an infinite value."""
    return [
        name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.float().isfinite().all()
    ]
