"""Sizes of Vision Transformers, in one place: ViT-B → L → tiny is one override of ``arch``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Arch:
    """Size of a transformer.

    Raises:
        ValueError: The width is not a multiple of the number of heads, or a size is not positive.
    """

    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.num_heads, self.mlp_ratio) <= 0 or self.width % self.num_heads:
            raise ValueError(f'{self}: sizes must be positive and width a multiple of num_heads.')


ARCHS = {
    'ti': Arch(192, 12, 3),
    's': Arch(384, 12, 6),
    'b': Arch(768, 12, 12),
    'l': Arch(1024, 24, 16),
    'h': Arch(1280, 32, 16),
}


def resolve_arch(arch: str | dict[str, Any] | Arch) -> Arch:
    """Turn a config's ``arch`` into sizes.

    Args:
        arch: One of ``ARCHS`` or ``dict(width=…, depth=…, num_heads=…[, mlp_ratio=…])``.

    Raises:
        ValueError: An unknown name or key.
    """
    if isinstance(arch, Arch):
        return arch
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ValueError(f"arch='{arch}' is not known: choose from {sorted(ARCHS)} or give a dict.")
        return ARCHS[arch]
    allowed = {field.name for field in fields(Arch)}
    if not {'width', 'depth', 'num_heads'} <= set(arch) <= allowed:
        raise ValueError(f'arch={dict(arch)}: a dict needs width, depth, num_heads and may have mlp_ratio.')
    return Arch(**arch)
