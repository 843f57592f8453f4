"""The papers' teachers as their authors released them: file, format and network, from ``releases.yml``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Statistics = tuple[float, float, float]  # per channel in RGB order, for pixels of 0 … 255

_TABLE: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name('releases.yml').read_text('utf-8'))
# Mean and standard deviation of the pixels by name.
PIXELS: dict[str, tuple[Statistics, Statistics]] = {
    name: (tuple(mean), tuple(std)) for name, (mean, std) in _TABLE['pixels'].items()
}
IMAGENET_PIXELS, HALF_PIXELS, CLIP_PIXELS = PIXELS['imagenet'], PIXELS['half'], PIXELS['clip']


@dataclass(frozen=True)
class Release:
    """A released network."""

    name: str  #: Key of the table, and name of the manifest
    title: str  #: Name for people
    publisher: str  #: Repository of the release, as owner/name
    file: str  #: Name of the released file, or a description if it has no fixed name
    #: Key of ``mkd_plugin.checkpoint.formats.FORMATS``; None if this package does not read the file
    format: str | None = None
    #: Mean and standard deviation of the pixels, per channel, 0 … 255
    statistics: tuple[Statistics, Statistics] = IMAGENET_PIXELS
    papers: tuple[str, ...] = ()  #: Papers that distill from it (or, for their own networks, released it)
    network: Mapping[str, Any] | None = None  #: Options of ``VisionTransformer``; None for other architectures
    prefix: str | None = None  #: Prefix of the network's names if the file holds several networks
    manifest: bool = True  #: Whether ``tests/manifests`` lists the names and shapes of its tensors
    component: str = 'ViTTeacher'  #: Class of the teacher that loads it
    remark: str = ''  #: Further advice for using it

    @property
    def pixel_mean(self) -> Statistics:
        """Per channel, 0 … 255."""
        return self.statistics[0]

    @property
    def pixel_std(self) -> Statistics:
        """Per channel, 0 … 255."""
        return self.statistics[1]

    @property
    def grid(self) -> tuple[int, int] | None:
        """Patches per column and per row at the file's image size; None without ``network``."""
        if self.network is None:
            return None
        side = self.network['img_size'] // self.network['patch_size']
        return side, side


def read_release(name: str, entry: Mapping[str, Any]) -> Release:
    options = dict(entry)
    statistics, papers = PIXELS[options.pop('pixels', 'imagenet')], tuple(options.pop('papers', ()))
    return Release(name=name, statistics=statistics, papers=papers, **options)


RELEASES: dict[str, Release] = {name: read_release(name, entry) for name, entry in _TABLE['releases'].items()}
