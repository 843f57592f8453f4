"""What an optimiser's groups are, as a table."""

from __future__ import annotations

from typing import Any, NamedTuple

from rich.table import Table
from torch.optim import Optimizer

__all__ = ['GroupKind', 'group_table', 'parameter_groups']


class GroupKind(NamedTuple):
    """All groups of one layer, rate and weight decay.

    Attributes:
        layer: What layer-wise rate decay calls them; empty without it.
        tensors: How many parameters there are.
        numbers: How many numbers those hold.
        rate: Learning rate.
        decay: Weight decay.
    """

    layer: str
    tensors: int
    numbers: int
    rate: float
    decay: float


def parameter_groups(optimizer: Optimizer) -> list[GroupKind]:
    """The kinds of groups in their order; mmengine makes a group of every tensor."""
    kinds: dict[tuple[str, float, float], list[int]] = {}
    for group in optimizer.param_groups:
        numbers = kinds.setdefault((group.get('layer', ''), group['lr'], group.get('weight_decay', 0.0)), [])
        numbers += [parameter.numel() for parameter in group['params']]
    return [GroupKind(layer, len(n), sum(n), rate, decay) for (layer, rate, decay), n in kinds.items()]


def group_table(optimizer: Optimizer) -> Table:
    """The kinds of groups as a table, with a column for the layer if there are layers."""
    kinds = parameter_groups(optimizer)
    columns: list[tuple[str, Any]] = [
        ('layer', lambda kind: kind.layer),
        ('tensors', lambda kind: str(kind.tensors)),
        ('parameters', lambda kind: f'{kind.numbers:,}'),
        ('rate', lambda kind: f'{kind.rate:.4g}'),
        ('weight decay', lambda kind: f'{kind.decay:.4g}'),
    ]
    shown = columns if any(kind.layer for kind in kinds) else columns[1:]
    table = Table(*(title for title, _ in shown), title='parameter groups')
    for kind in kinds:
        table.add_row(*(cell(kind) for _, cell in shown))
    return table
