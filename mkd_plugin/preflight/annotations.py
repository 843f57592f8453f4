"""Checks of labels before the first step: lists, annotations of detectors (COCO's format) and segmentors (label maps).

What would end the run, or be learned wrongly without a word, is refused. What mmdet leaves out is a warning.
"""

from __future__ import annotations

import json
import logging
import math
import os
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from PIL import Image

from mkd_plugin.datasets.loading import check_regular
from mkd_plugin.datasets.shards.dataset import find_tars
from mkd_plugin.datasets.shards.storage import place_of
from mkd_plugin.evaluation.images import read_annotation, spread
from mkd_plugin.preflight.checks import data_classes, local_datasets

SAMPLE = 256  # images of COCO whose size, and label maps whose labels are compared: evenly spread over the data
THREADS = 8  # that open images; a network file system takes about a millisecond for each
SHOWN, MOST_LINES = 5, 9  # names of a kind, and kinds, in a message
FAR = 10  # sides of an image beyond which no polygon reaches
IGNORED = 255  # the label that is not trained on
ORIENTATION = 0x0112  # EXIF; 5 … 8 swap height and width, and OpenCV turns such images upright
GREY = ('1', 'L', 'P', 'I', 'I;16', 'I;16B')

Found = defaultdict[str, list[Any]]  # what is wrong → the names of those with whom it is


def check_annotations(cfg: Config, loaders: Sequence[str]) -> None:
    """Check the annotations of these loaders of a detector or segmentor, on the first process of torchrun only.

    Files that are missing are left to ``check_data``, other data sets than COCO's and label maps to their hosts. Raises
    ValueError if annotations would end the run or be learned wrongly; the message counts them and names the first five.
    """
    scope = cfg.get('default_scope') or 'mmengine'
    for option, kind, dataset in local_datasets(cfg, loaders):
        root, prefix = dataset.get('data_root') or '', dataset.get('data_prefix') or {}
        with warnings.catch_warnings():
            warnings.simplefilter('error', Image.DecompressionBombWarning)
            if scope == 'mmdet' and kind == 'CocoDataset':
                file = Path(root, dataset.get('ann_file') or '')
                if file != Path(root) and file.exists():
                    report(f'{option}, {file}', *check_coco(file, dataset, data_classes(dataset, scope)))
            elif scope == 'mmseg' and 'seg_map_path' in prefix and Path(root, prefix['seg_map_path']).is_dir():
                report(option, check_label_maps(dataset, scope), {})


def check_samples(cfg: Config, loaders: Sequence[str]) -> None:
    """Check shards and the labels of lists, on the first process only; missing files are left to ``check_data``.

    Raises ValueError if a folder has no shards, a line of a list no label, or a label is not one of the head's classes.
    """
    classes = ((cfg.get('model') or {}).get('head') or {}).get('num_classes')
    for _, kind, dataset in local_datasets(cfg, loaders):
        root, listed = str(dataset.get('data_root') or ''), dataset.get('ann_file')
        if kind == 'ShardDataset':
            find_tars(place_of(os.path.join(root, dataset.get('data_prefix') or '')), dataset.get('shards', '*.tar'))
        elif kind == 'CustomDataset' and listed and dataset.get('with_label', True):
            check_labels(Path(root, listed), classes)


def check_labels(path: Path, classes: int | None) -> None:
    """Raise ValueError if a line of a list has no label, or one that is not below the number of classes."""
    _, labels = read_annotation(path)
    if classes is not None and max(labels) >= classes:
        number = labels.index(max(labels)) + 1
        raise ValueError(
            f'{path}: image {number} has the class id {max(labels)}, but model.head.num_classes={classes}, so ids go from 0 '
            f'to {classes - 1}.'
        )


def report(where: str, wrong: Mapping[str, Sequence[Any]], left_out: Mapping[str, Sequence[Any]]) -> None:
    """Warn of what is left out, and raise ValueError for what is wrong: a line with a count and names for each kind."""
    refused, omitted = (
        [
            f'{len(names):,} {kind}: {", ".join(str(name)[:100] for name in names[:SHOWN])}{", …" * (len(names) > SHOWN)}'
            for kind, names in list(found.items())[:MOST_LINES]
        ]
        for found in (wrong, left_out)
    )
    if refused:
        lines = '\n  '.join(refused)
        raise ValueError(f'{where}: the annotations cannot be trained on.\n  {lines}\nCorrect or remove them.')
    for line in omitted:
        print_log(f'{where}: mmdet leaves out {line}', 'current', level=logging.WARNING)


def check_coco(file: Path, dataset: Mapping[str, Any], classes: Sequence[str] | None) -> tuple[Found, Found]:
    """Return what is wrong in a file of COCO's format, and what mmdet leaves out. Raises ValueError if it is no such file."""
    wrong, left_out = Found(list), Found(list)
    content = read_coco(file)
    images: dict[Any, tuple[str, int, int]] = {}
    for number, entry in enumerate(content['images']):
        try:
            name, height, width = entry['file_name'], entry['height'], entry['width']
            if not isinstance(name, str) or not (height > 0 and width > 0):
                raise ValueError
            if entry['id'] in images:
                wrong['images whose id another one has'].append(name)
            images[entry['id']] = (name, height, width)
        except (KeyError, TypeError, ValueError):
            wrong['images without a valid id, file_name, height and width'].append(f'number {number}')
    categories = {}
    for number, entry in enumerate(content['categories']):
        try:
            categories[entry['id']] = entry['name']
        except (KeyError, TypeError):
            wrong['categories without an id and a name'].append(f'number {number}')
    unknown = [name for name in classes or () if name not in categories.values()]
    if unknown:  # mmdet would give the classes after it the ids of those before
        wrong['classes that no category of the file has (set metainfo=dict(classes=(…)))'] += unknown
    masks = any(step.get('with_mask', False) for step in dataset.get('pipeline') or () if isinstance(step, dict))
    check_objects(content['annotations'], images, categories, masks, wrong, left_out)
    folder = Path(dataset.get('data_root') or '', (dataset.get('data_prefix') or {}).get('img') or '')
    check_images(folder, list(images.values()), wrong)
    return wrong, left_out


def read_coco(file: Path) -> dict[str, list[Any]]:
    """Read a file of COCO's format. Raises ValueError if it is none."""
    try:
        check_regular(file, most=math.inf)
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{file} is no JSON file: {error}. Fetch or make it again.') from error
    lists = content if isinstance(content, dict) else {}
    missing = [key for key in ('images', 'annotations', 'categories') if not isinstance(lists.get(key), list)]
    if missing:
        raise ValueError(f"{file} is not in COCO's format: it has no list {', '.join(missing)}.")
    return lists


def check_objects(
    annotations: Iterable[Any],
    images: Mapping[Any, tuple[str, int, int]],
    categories: Mapping[Any, str],
    masks: bool,
    wrong: Found,
    left_out: Found,
) -> None:
    """Add what is wrong with objects, and those that mmdet leaves out, by their ids."""
    seen = set()
    for number, entry in enumerate(annotations):
        try:
            ident, (x, y, width, height), area = entry['id'], entry['bbox'], entry['area']
            image, known = images.get(entry['image_id']), entry['category_id'] in categories
            finite = math.isfinite(x + y + width + height) and math.isfinite(area)
            duplicate = ident in seen
            seen.add(ident)
        except (KeyError, TypeError, ValueError, ArithmeticError):
            wrong['annotations without a valid id, image_id, category_id, bbox and area'].append(f'number {number}')
            continue
        if duplicate:
            wrong['annotations whose id another one has'].append(ident)
        if not finite:
            wrong['annotations with NaN or infinity in bbox or area'].append(ident)
        elif image is None:
            left_out['annotations of images that the file does not list'].append(ident)
        elif not known:
            left_out['annotations of unknown categories'].append(ident)
        elif min(width, height) < 1 or area <= 0 or not (-width < x < image[2] and -height < y < image[1]):
            left_out['annotations whose box is smaller than a pixel, negative or outside of the image'].append(ident)
        elif masks and not entry.get('ignore'):
            outline = entry.get('segmentation')
            if not outline:
                wrong['annotations with an empty segmentation'].append(ident)
            elif isinstance(outline, dict) and outline.get('size') != [image[1], image[2]]:
                wrong['annotations with a mask of another size than the image'].append(ident)
            elif not is_outline(outline, image[1], image[2]):
                wrong['annotations whose segmentation is neither polygons near the image nor run lengths'].append(ident)


def is_outline(outline: Any, height: int, width: int) -> bool:
    """Whether pycocotools can draw a segmentation: it reserves memory for what a far polygon or long runs would cover."""
    try:
        if isinstance(outline, list):
            far = FAR * max(height, width)
            return all(
                isinstance(polygon, list)
                and math.isfinite(sum(polygon))
                and -far <= min(polygon, default=0) <= max(polygon, default=0) <= far
                for polygon in outline
            )
        counts = outline['counts']
        return isinstance(counts, str) or (min(counts) >= 0 and bool(sum(counts) == height * width))
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return False


def check_images(folder: Path, images: Sequence[tuple[str, int, int]], wrong: Found) -> None:
    """Add the images of a file that are not on disk, and those of a sample that have another size."""
    listed: dict[str, set[str]] = {}
    present = []
    for image in images:
        inside, name = os.path.split(image[0])
        if inside not in listed:  # reading a folder once is faster than asking for each of 118,000 files
            listed[inside] = set(os.listdir(folder / inside)) if (folder / inside).is_dir() else set()
        present.append(image) if name in listed[inside] else wrong[f'images that are not in {folder}'].append(image[0])
    for name, height, width in (present[place] for place in spread(len(present), SAMPLE)):
        size, _ = size_and_mode(folder / name)
        if size != (width, height):
            problem = 'of another size than the file says' if size else 'that cannot be opened'
            wrong[f'images {problem}, of {SAMPLE} looked at'].append(name)


def size_and_mode(path: str | Path) -> tuple[tuple[int, int] | None, str]:
    """Return (width, height) of an image after the turn that its EXIF data ask for, and Pillow's mode; None if unreadable."""
    try:
        check_regular(path)
        with Image.open(path) as image:
            turned = image.format == 'JPEG' and image.getexif().get(ORIENTATION, 1) > 4
            return image.size[::-1] if turned else image.size, image.mode
    except Exception:  # Pillow raises almost anything
        return None, ''


def check_label_maps(dataset: Mapping[str, Any], scope: str) -> Found:
    """Return what is wrong with the label maps of a data set of mmseg: sizes of all of them, labels of a sample."""
    with DATASETS.switch_scope_and_registry(scope) as registry:
        data = registry.build({**dataset, 'pipeline': []})
    pairs = [data.get_data_info(number) for number in range(len(data))]
    number_of_classes = len(data.metainfo.get('classes') or ())
    wrong = Found(list)
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(filter(None, pool.map(size_problem, pairs)))
        if not found and number_of_classes:
            sample = [pairs[place] for place in spread(len(pairs), SAMPLE)]
            found = list(filter(None, pool.map(lambda pair: label_problem(pair, number_of_classes), sample)))
    for kind, name in found:
        wrong[kind].append(name)
    return wrong


def size_problem(pair: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return what is wrong with an image and the header of its label map, and the name."""
    sizes = []
    for path in (pair['img_path'], pair['seg_map_path']):
        size, mode = size_and_mode(path)
        if size is None:
            return f'images or label maps that {"cannot be opened" if os.path.exists(path) else "do not exist"}', path
        sizes.append(size)
    if mode not in GREY:
        return 'label maps in colour, without one number for each pixel', path
    return ('label maps of another size than the image', path) if sizes[0] != sizes[1] else None


def label_problem(pair: Mapping[str, Any], number_of_classes: int) -> tuple[str, str] | None:
    """Return that labels of a label map are no class after mmseg's conversion, and its name."""
    path, renamed = pair['seg_map_path'], pair.get('label_map') or {}
    try:
        with Image.open(path) as image:
            labels = np.unique(np.asarray(image).astype(np.int64))
    except Exception:  # Pillow raises almost anything
        return 'label maps that cannot be read', path
    if pair['reduce_zero_label']:
        labels = np.where((labels == 0) | (labels == IGNORED), IGNORED, labels - 1)
    for label in labels.tolist():
        if not 0 <= renamed.get(label, label) < number_of_classes and renamed.get(label, label) != IGNORED:
            kind = f'with labels that are neither 0 … {number_of_classes - 1} nor {IGNORED}'
            return f'label maps, of {SAMPLE} looked at, {kind}', f'{path} ({label})'
    return None
