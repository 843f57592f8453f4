"""What a report holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mkd_plugin.version import __version__


@dataclass
class Report:
    """What was measured; ``report.json`` is it.

    Attributes:
        models: Name → description.
        data: About the images.
        settings: How.
        results: Model → measurement → numbers.
        pairs: Similarity of the first model and each other one.
        failed: Model → measurement → why it could not be measured.
        left_out: Model → measurement → why it was not tried.
        version: Of this package.
    """

    models: dict[str, dict[str, Any]]
    data: dict[str, Any]
    settings: dict[str, Any]
    results: dict[str, dict[str, Any]]
    pairs: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, dict[str, str]] = field(default_factory=dict)
    left_out: dict[str, dict[str, str]] = field(default_factory=dict)
    version: str = __version__
