"""Features of a frozen network: computed once, all layers and poolings in one pass, and kept on disk."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mkd_plugin.analysis.checks import check_finite
from mkd_plugin.evaluation.images import LabelledImages
from mkd_plugin.evaluation.progress import shown
from mkd_plugin.interop.subjects import Subject

TAP = re.compile(r'output|block:-?\d+')  # all of the network's width
POOLS = ('cls', 'mean')
VERSION = 2  # of what is computed and how it is kept


@dataclass(frozen=True)
class Feature:
    """One vector an image.

    Attributes:
        tap: Where to read: 'block:-1', 'block:i', 'output'.
        pool: 'cls', or 'mean' of the patch tokens.
    """

    tap: str = 'block:-1'
    pool: str = 'mean'

    def __post_init__(self) -> None:
        if not TAP.fullmatch(self.tap):
            raise ValueError(
                f"tap='{self.tap}': use 'output', after the final norm, or 'block:i', i from 0 or negative."
            )
        if self.pool not in POOLS:
            raise ValueError(f"pool='{self.pool}': use 'cls' or 'mean'.")

    def __str__(self) -> str:
        return f'{self.tap} {self.pool}'


@dataclass(frozen=True)
class Features:
    """Features of a set of images, by what they are; memory-mapped.

    Attributes:
        values: (N, D) float32 each.
        labels_N: Class ids.
    """

    values: Mapping[Feature, Tensor]
    labels_N: Tensor


@dataclass(frozen=True)
class Split:
    """What a protocol learns from, and what it is judged by."""

    train: Features
    val: Features


@dataclass(frozen=True)
class FeatureStore:
    """Computes features, or takes those that an earlier run has computed of the same images by the same network.

    A folder of the cache is named by the sha256 of all that its numbers depend on: the checkpoint's content, the part of it,
    its network's options and pixel statistics, the images' names and bytes, preprocessing, taps. So another checkpoint under
    the same path is another folder. It holds ``about.json``, a ``.npy`` file for each feature, and ``done.json``, how many
    images are in them: a run that was stopped goes on after its last whole shard. Two processes that want the same features
    take turns.

    Attributes:
        cache: Folder of the cache.
        batch_size: Images at once.
        workers: Processes that read images.
        shard: Images after which the files are flushed.
    """

    cache: Path
    batch_size: int = 64
    workers: int = 0
    shard: int = 2048

    def features(self, subject: Subject, images: LabelledImages, which: Sequence[Feature]) -> Features:
        """Features of all images.

        Args:
            subject: The network, on the device that computes.
            images: In the order of their features.
            which: What to compute, without repetition.

        Raises:
            OSError: The cache cannot be written.
            ValueError: An unknown tap, one that the network lacks, an image that cannot be read, or features that are not
                finite.
        """
        if not subject.final_norm and any(feature.tap == 'output' for feature in which):
            raise ValueError(
                f"{subject.source} has no norm for tokens, so there is no 'output'. Read its last block: 'block:-1'."
            )
        key = dict(
            version=VERSION,
            subject=subject.identity,
            data=images.identity(),
            features=sorted(map(str, which)),
        )
        folder = self.cache / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder):
            write_json(folder / 'about.json', key)
            done = read_done(folder)
            if done < len(images):
                self._extract(subject, images, which, folder, done)
        values = {
            # copy on write: torch wants memory that it could write to
            feature: torch.from_numpy(np.load(file_of(folder, feature), mmap_mode='c'))
            for feature in which
        }
        return Features(values, images.labels)

    def _extract(
        self, subject: Subject, images: LabelledImages, which: Sequence[Feature], folder: Path, done: int
    ) -> None:
        """Fill the files from image ``done`` on, a shard at a time."""
        width = subject.network.arch.width
        files = {feature: open_rows(file_of(folder, feature), len(images), width, new=done == 0) for feature in which}
        with shown(f'features of {images.folder.name}', len(images), done=done) as report:
            while done < len(images):
                stop = min(done + self.shard, len(images))
                for batch in images.batches(done, stop, batch_size=self.batch_size, workers=self.workers):
                    for feature, found_BD in compute(subject, batch, which).items():
                        files[feature][done : done + len(batch)] = found_BD.cpu().numpy()
                    done += len(batch)
                    report(done)
                for file in files.values():
                    file.flush()
                write_json(folder / 'done.json', done)


@torch.no_grad()
def compute(subject: Subject, images_BCHW: Tensor, which: Sequence[Feature]) -> dict[Feature, Tensor]:
    """All features of a batch, (B, D) each, in one pass."""
    network = subject.network
    taps = sorted({feature.tap for feature in which})
    found = network(subject.normalise(images_BCHW.to(subject.device)), taps=taps)
    values = {}
    for feature in which:
        tokens_BND = found.tokens(feature.tap)
        values[feature] = tokens_BND[:, 0] if feature.pool == 'cls' else tokens_BND[:, network.num_prefix :].mean(dim=1)
        check_finite(values[feature], str(feature))
    return values


def file_of(folder: Path, feature: Feature) -> Path:
    """Where a feature is kept."""
    return folder / f'{feature.tap.replace(":", "_")}_{feature.pool}.npy'


def open_rows(path: Path, rows: int, width: int, *, new: bool) -> np.memmap[Any, Any]:
    """A file of (rows, width) numbers to write into."""
    if new:
        np.save(path, np.broadcast_to(np.float32(0), (rows, width)))
    opened: np.memmap[Any, Any] = np.load(path, mmap_mode='r+')
    return opened


def read_done(folder: Path) -> int:
    """How many images an earlier run has finished."""
    path = folder / 'done.json'
    return int(json.loads(path.read_text())) if path.is_file() else 0


def write_json(path: Path, value: Any) -> None:
    """The whole file or none."""
    half = path.with_name(f'{path.name}.{os.getpid()}')
    half.write_text(json.dumps(value, indent=1) + '\n')
    half.replace(path)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other process is at work in this folder."""
    with (folder / 'lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # closing releases it
        yield
