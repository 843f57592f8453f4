"""Lists of labelled images, as mmpretrain's annotation files: a share for semi-supervised fine-tuning, or iNaturalist's."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mkd_plugin.evaluation.images import find_images, shorten

Labelled = list[tuple[str, int]]


def labelled_images(train: Path) -> Labelled:
    """Path below ``train`` and class id of each image."""
    if not train.is_dir():
        raise ValueError(f'{train} is not a folder. Give the training images, with a folder for each class.')
    names, labels = find_images(train, sorted(path.name for path in train.iterdir() if path.is_dir()))
    return list(zip(names, labels, strict=True))


def draw_share(train: str | Path, fraction: float, seed: int) -> Labelled:
    """A class-balanced draw of ``fraction`` of the images: numbers of two classes differ by one at most.

    SimCLR (Chen et al. 2020, appendix B.5) samples 1 % and 10 % so, about 13 and 128 images a class. The same seed gives the
    same images, and a smaller share is part of a larger one if that has a whole image more of every class.

    Raises:
        ValueError: The share has not an image for every class, or more than a class has.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f'fraction={fraction}: it must lie in (0, 1]. 1 % is 0.01.')
    members: defaultdict[int, list[str]] = defaultdict(list)
    for name, label in labelled_images(Path(train)):
        members[label].append(name)
    images = sum(map(len, members.values()))
    each, more = divmod(round(fraction * images), len(members))
    if each < 1:
        raise ValueError(
            f'fraction={fraction}: {round(fraction * images)} of {images} images are fewer than the {len(members)} classes. '
            'Give a larger share.'
        )
    favoured = set(np.random.default_rng(seed).permutation(len(members))[:more].tolist())
    drawn: Labelled = []
    for label, names in members.items():
        count = each + (label in favoured)
        if count > len(names):
            raise ValueError(
                f'fraction={fraction} is {count} images a class, but class {label} has {len(names)}. Give a smaller share.'
            )
        order = np.random.default_rng((seed, label)).permutation(len(names))
        drawn += [(names[index], label) for index in order[:count]]
    return drawn


def published_share(train: str | Path, published: str | Path) -> Labelled:
    """The images of a published list, SimCLR's ``1percent.txt`` for example: a file name in each line.

    Raises:
        ValueError: There is no such list, or it names images that are not there.
    """
    published = Path(published)
    if not published.is_file():
        raise ValueError(f'The list {published} does not exist: a file name (n01440764_10026.JPEG) in each line.')
    images = {Path(name).name: (name, label) for name, label in labelled_images(Path(train))}
    wanted = [Path(line.strip()).name for line in published.read_text().splitlines() if line.strip()]
    missing = [name for name in wanted if name not in images]
    if missing or not wanted:
        raise ValueError(
            f'{len(missing)} of the {len(wanted)} images of {published} are not in {train}: {shorten(missing)}. Is it the list '
            'of these images?'
        )
    return [images[name] for name in wanted]


def listed_in_json(root: str | Path, path: str | Path) -> Labelled:
    """The images of a file in COCO's form with one category an image, iNaturalist's ``train2018.json`` for example.

    Ids are the categories' places in the file's sorted ids.

    Raises:
        ValueError: There is no such file, it has no labels, or an image that is not below ``root``.
    """
    try:
        found: dict[str, Any] = json.loads(Path(path).read_text())
        names = {image['id']: image['file_name'] for image in found['images']}
        ids = {number: place for place, number in enumerate(sorted(entry['id'] for entry in found['categories']))}
        labelled = [(names[entry['image_id']], ids[entry['category_id']]) for entry in found['annotations']]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no list in COCO's form ({error!r}): it needs images, categories and annotations. A set without "
            'labels, as the test set, cannot be listed.'
        ) from error
    missing = [name for name, _ in labelled if not (Path(root) / name).is_file()]
    if missing or not labelled:
        raise ValueError(
            f'{len(missing)} of the {len(labelled)} images of {path} are not in {root}: {shorten(missing)}.'
        )
    return labelled


def write_list(labelled: Sequence[tuple[str, int]], path: str | Path) -> Path:
    """Write ``<path> <id>`` lines, the whole file or none: ``train_dataloader.dataset.ann_file`` of a fine-tuning."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f'{path.name}.{os.getpid()}')
    half.write_text(''.join(f'{name} {label}\n' for name, label in labelled))
    half.replace(path)
    return path
