"""Label lists in the format of mmpretrain's annotation files: subsets for semi-supervised fine-tuning, and iNaturalist."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mkd_plugin.checkpoint.report import shorten
from mkd_plugin.datasets.folder import read_list
from mkd_plugin.datasets.loading import check_regular
from mkd_plugin.evaluation.images import class_folders, find_images
from mkd_plugin.utils.files import write_whole

Labelled = list[tuple[str, int]]


def labelled_images(train: Path) -> Labelled:
    """Return the path below ``train`` and the class id of each image."""
    if not train.is_dir():
        raise ValueError(f'{train} is not a folder. Give the training images, with one folder for each class.')
    names, labels = find_images(train, class_folders(train))
    return list(zip(names, labels, strict=True))


def draw_share(train: str | Path, fraction: float, seed: int) -> Labelled:
    """Draw a class-balanced fraction of the images: class sizes differ by at most one.

    SimCLR (Chen et al. 2020, appendix B.5) samples its 1 % and 10 % subsets of ImageNet like this. The same seed gives the
    same images, and a subset contains every smaller one that has at least one image fewer per class. Raises ValueError if
    the fraction is less than one image per class, or more than some class has.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f'fraction={fraction}: it must be in (0, 1]; 1 % is 0.01.')
    members: defaultdict[int, list[str]] = defaultdict(list)
    for name, label in labelled_images(Path(train)):
        members[label].append(name)
    images = sum(map(len, members.values()))
    each, more = divmod(round(fraction * images), len(members))
    if each < 1:
        raise ValueError(
            f'fraction={fraction}: {round(fraction * images)} of {images} images are fewer than the {len(members)} classes. '
            'Give a larger fraction.'
        )
    with_extra = set(np.random.default_rng(seed).permutation(len(members))[:more].tolist())
    drawn: Labelled = []
    for label, names in members.items():
        count = each + (label in with_extra)
        if count > len(names):
            raise ValueError(
                f'fraction={fraction} is {count} images per class, but class {label} has {len(names)}. Give a smaller fraction.'
            )
        order = np.random.default_rng((seed, label)).permutation(len(names))
        drawn += [(names[index], label) for index in order[:count]]
    return drawn


def published_share(train: str | Path, published: str | Path) -> Labelled:
    """Find the images of a published list of file names, as SimCLR's ``1percent.txt``. Raises ValueError if one is missing."""
    published = Path(published)
    places: dict[str, Labelled] = {}
    for name, label in labelled_images(Path(train)):
        places.setdefault(Path(name).name, []).append((name, label))
    wanted = [Path(line.strip()).name for line in read_list(published)]
    missing = [name for name in wanted if name not in places]
    if missing or not wanted:
        raise ValueError(
            f'{len(missing)} of the {len(wanted)} images of {published} are not in {train}: {shorten(missing)}. Check '
            'that the list belongs to these images.'
        )
    if twice := [name for name in wanted if len(places[name]) > 1]:
        raise ValueError(f'{published} does not say which it means: {train} has more than one {shorten(twice)}.')
    return [places[name][0] for name in wanted]


def listed_in_json(root: str | Path, path: str | Path) -> Labelled:
    """Read a file in COCO's format with one category per image, such as iNaturalist's ``train2018.json``.

    Class ids are the ranks of the category ids. Raises ValueError if the file does not exist, has no labels, or lists an
    image that is not below ``root``.
    """
    try:
        check_regular(path)
        found: dict[str, Any] = json.loads(Path(path).read_bytes())
        names = {image['id']: image['file_name'] for image in found['images']}
        ids = {category: rank for rank, category in enumerate(sorted(entry['id'] for entry in found['categories']))}
        labelled = [(names[entry['image_id']], ids[entry['category_id']]) for entry in found['annotations']]
        paths = [Path(root) / name for name, _ in labelled]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not in COCO's format ({error!r}): it needs images, categories and annotations. A test set "
            'without labels cannot be listed.'
        ) from error
    missing = [name for (name, _), path in zip(labelled, paths, strict=True) if not path.is_file()]
    if missing or not labelled:
        raise ValueError(
            f'{len(missing)} of the {len(labelled)} images of {path} are not in {root}: {shorten(missing)}.'
        )
    return labelled


def write_list(labelled: Sequence[tuple[str, int]], path: str | Path) -> Path:
    """Write ``<path> <id>`` lines, for ``train_dataloader.dataset.ann_file`` of a fine-tuning config."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, ''.join(f'{name} {label}\n' for name, label in labelled))
    return path
