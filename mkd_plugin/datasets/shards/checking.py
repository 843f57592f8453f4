"""Whether shards are what was written, and all of it can be read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine.fileio import get

from mkd_plugin.datasets.loading import UnreadableImageError, decode
from mkd_plugin.datasets.shards.index import key_of, scan
from mkd_plugin.datasets.shards.reading import member_uri
from mkd_plugin.datasets.shards.writing import MANIFEST


def verify_shards(target: Path, *, step: Callable[[int], Any] = lambda images: None) -> list[str]:
    """Read every shard again: its hash, the number of its images, each image to its end, and each label.

    Args:
        target: The folder that ``write_shards`` filled.
        step: Told how many more images were read.

    Returns:
        What is wrong; nothing if all is well.

    Raises:
        ValueError: The folder has no manifest.
    """
    if not (target / MANIFEST).is_file():
        raise ValueError(f'{target} has no {MANIFEST}: only shards that make_shards.py made can be verified.')
    manifest = json.loads((target / MANIFEST).read_text())
    problems = []
    for name, entry in manifest['shards'].items():
        try:
            problems += [f'{name}: {what}' for what in verify_shard(target / name, entry, manifest['classes'], step)]
        except (OSError, ValueError) as error:
            problems.append(f'{name}: {error}')
    expected = sum(entry['images'] + len(entry['skipped']) for entry in manifest['shards'].values())
    if expected != manifest['images']:
        problems.append(f'{expected} of {manifest["images"]} images are in shards: run make_shards.py again to finish.')
    return problems


def verify_shard(tar: Path, entry: dict[str, Any], classes: list[str], step: Callable[[int], Any]) -> list[str]:
    """What is wrong with one shard.

    Raises:
        OSError: It is not there.
        ValueError: It is no tar file.
    """
    problems = []
    with tar.open('rb') as file:
        if hashlib.file_digest(file, 'sha256').hexdigest() != entry['sha256']:
            problems.append('its content is not what was written (SHA-256)')
    index = scan(tar)
    images = [member for member in index.members if not member[0].endswith('.cls')]
    if len(images) != entry['images']:
        problems.append(f'{len(images)} images instead of {entry["images"]}')
    for name, offset, size in images:
        try:
            decode(get(member_uri(tar, name, offset, size)))
        except UnreadableImageError as error:
            problems.append(f'{name}: {error}')
        if classes and not 0 <= index.labels.get(key_of(name), -1) < len(classes):
            problems.append(f'{name}: no label, or none of the {len(classes)} classes')
        step(1)
    return problems
