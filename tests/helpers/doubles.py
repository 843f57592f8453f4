"""Components that a test writes itself, as a user would."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mkd_plugin.registry import MODELS


@contextmanager
def registered(*classes: type) -> Iterator[None]:
    """Register classes under their names for a while."""
    for cls in classes:
        MODELS.register_module(module=cls)
    yield
    for cls in classes:
        MODELS.module_dict.pop(cls.__name__)
        MODELS._mirror.module_dict.pop(cls.__name__)
