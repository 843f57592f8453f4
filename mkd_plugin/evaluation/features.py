"""Features of frozen networks: all layers and poolings in one pass, cached on disk."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from mkd_plugin.analysis.streaming import check_finite
from mkd_plugin.evaluation.images import LabelledImages
from mkd_plugin.interop.open_model import OpenedModel
from mkd_plugin.utils.files import lock_file, write_whole

Report = Callable[[float], None]  # called with the fraction that is done, 0 … 1

TAP = re.compile(r'output|block:-?\d+|as:.+')  # the last one of a network in a teacher's space
POOLS = ('cls', 'mean', 'none')
VERSION = 2  # of the cached values and files; raise it when either changes


def ignore(fraction: float) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Feature:
    """One vector per image, or all its tokens."""

    tap: str = 'block:-1'  #: 'block:i' (i from 0, or negative from the end), or 'output', after the final norm
    pool: str = 'mean'  #: 'cls', 'mean' of the patch tokens, or 'none' for all tokens, cls first

    def __post_init__(self) -> None:
        if not TAP.fullmatch(self.tap):
            raise ValueError(
                f"tap='{self.tap}': use 'output' (after the final norm) or 'block:i', i from 0 or negative."
            )
        if self.pool not in POOLS:
            raise ValueError(f"pool='{self.pool}': use 'cls', 'mean' or 'none'.")

    def __str__(self) -> str:
        return f'{self.tap} {self.pool}'


@dataclass(frozen=True)
class Features:
    """Features of a set of images."""

    values: Mapping[Feature, Tensor]  #: Feature → (N, D) float32, memory-mapped; (N, 1 + L, D) for 'none'
    labels_N: Tensor  #: Class ids


@dataclass(frozen=True)
class Split:
    """Features to train on and to evaluate on."""

    train: Features
    val: Features


@dataclass(frozen=True)
class FeatureStore:
    """Computes features, or reads them from the cache.

    Each cache folder is named by the sha256 of everything its values depend on: checkpoint content, part of the checkpoint,
    network options, pixel statistics, names and bytes of the images, preprocessing, taps. It holds ``about.json`` (all of
    these), one ``.npy`` file per feature and ``done.json``, the number of images computed so far: an interrupted run
    resumes after the last complete shard. Processes that need the same features take turns.
    """

    cache: Path  #: Folder of the cache
    batch_size: int = 64  #: Images per forward pass
    workers: int = 0  #: Processes that read images
    shard: int = 2048  #: Number of images after which the files are flushed

    def features(
        self, subject: OpenedModel, images: LabelledImages, which: Sequence[Feature], *, report: Report = ignore
    ) -> Features:
        """Return features of all images, in their order. The network computes on its own device; ``which`` names each feature
        once.

        Raises OSError if the cache is not writable, ValueError for an unknown tap, one that the network lacks, an
        unreadable image, or NaN or infinite features.
        """
        if not subject.final_norm and any(feature.tap == 'output' for feature in which):
            raise ValueError(
                f"{subject.source} has no norm for tokens, so there is no 'output'. Read its last block: 'block:-1'."
            )
        if not subject.network.num_prefix and any(feature.pool == 'cls' for feature in which):
            raise ValueError(f"{subject.source} has no cls token. Pool its patches: 'mean'.")
        key = dict(version=VERSION, subject=subject.identity, data=images.identity(), features=sorted(map(str, which)))
        folder = self.cache / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        folder.mkdir(parents=True, exist_ok=True)
        with lock_file(folder / 'lock', wait=True):
            write_whole(folder / 'about.json', json.dumps(key, indent=1) + '\n')
            self._extract(subject, images, which, folder, report)
        values = {
            # copy-on-write, because torch requires writable memory
            feature: torch.from_numpy(np.load(file_of(folder, feature), mmap_mode='c'))
            for feature in which
        }
        return Features(values, images.labels)

    def _extract(
        self, subject: OpenedModel, images: LabelledImages, which: Sequence[Feature], folder: Path, report: Report
    ) -> None:
        """Fill the files, one shard at a time, starting after the images that an earlier run has completed."""
        progress = folder / 'done.json'
        done = int(json.loads(progress.read_text())) if progress.is_file() else 0
        if done == len(images):
            return
        open_file: Any = open_memmap  # NumPy has no types for it
        mode = 'r+' if done else 'w+'
        files = {
            feature: open_file(file_of(folder, feature), mode, np.float32, shape_of(subject, feature, len(images)))
            for feature in which
        }
        while done < len(images):
            stop = min(done + self.shard, len(images))
            for batch in images.batches(done, stop, batch_size=self.batch_size, workers=self.workers):
                for feature, values_BD in compute(subject, batch, which).items():
                    files[feature][done : done + len(batch)] = values_BD.cpu().numpy()
                done += len(batch)
                report(done / len(images))
            for file in files.values():
                file.flush()
            write_whole(progress, json.dumps(done))


@torch.no_grad()
def compute(subject: OpenedModel, images_BCHW: Tensor, which: Sequence[Feature]) -> dict[Feature, Tensor]:
    """Compute all features of a batch of RGB images in [0, 1] in one forward pass, (B, D) or (B, 1 + L, D) each."""
    network = subject.network
    taps = sorted({feature.tap for feature in which})
    tapped = network(subject.normalise(images_BCHW.to(subject.device)), taps=taps)
    values = {}
    for feature in which:
        values[feature] = tapped.pool(feature.tap, feature.pool)
        check_finite(values[feature], str(feature))
    return values


def shape_of(subject: OpenedModel, feature: Feature, images: int) -> tuple[int, ...]:
    network = subject.network
    tokens = (network.num_prefix + network.grid[0] * network.grid[1],) if feature.pool == 'none' else ()
    return (images, *tokens, network.tap_spec(feature.tap).channels)


def file_of(folder: Path, feature: Feature) -> Path:
    return folder / f'{feature.tap.replace(":", "_")}_{feature.pool}.npy'
