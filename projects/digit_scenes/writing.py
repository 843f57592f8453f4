"""Write scenes of handwritten digits in COCO's and ADE20K's formats: detection, segmentation and classification data.

    <root>/coco/{train,val}/<number>.png                        the images
    <root>/coco/annotations/{train,val}.json                    boxes and masks in COCO's format; categories '0' … '9'
    <root>/ade/images/{training,validation}/<number>.png        the same images, as hard links where possible
    <root>/ade/annotations/{training,validation}/<number>.png   0 background, 1 … 10 the digits '0' … '9'
    <root>/crops/{train,val}/<number>_<object>.png              the content of each box, with a margin, for classification
    <root>/crops/{train,val}.txt                                list of the crops: `<file> <digit>`
    <root>/scenes.json                                          the arguments, and whether the folder is complete

The hosts read them with `CocoDataset(metainfo=…)`, `BaseSegDataset(metainfo=…)` and `CustomDataset`: see
configs/_base_/datasets/digit_scenes_*.py.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.datasets import load_digits

from mkd_plugin.datasets.digits import split_scans
from projects.digit_scenes.drawing import Scans, Scene, draw_scene

CLASSES = tuple('0123456789')
NUM_SCENES = {'train': 1000, 'val': 200}
SETTINGS = 'scenes.json'
LAYOUT = 1  # version of the files written; raise it when the same arguments give other files
MARGIN = 0.15  # around a crop, as a fraction of the box's longer side
ADE_NAMES = {'train': 'training', 'val': 'validation', 'test': 'test'}

Draw: TypeAlias = Callable[[np.random.Generator], Scene]


def write_digit_scenes(
    root: str | Path,
    *,
    seed: int = 0,
    train: int = NUM_SCENES['train'],
    val: int = NUM_SCENES['val'],
    step: Callable[[], Any] = lambda: None,
) -> Path:
    """Write the scenes, unless they are already complete.

    Scans of ``train`` and ``val`` come from the two splits of the digits, so that no scan is in both. Scene i of a split
    depends only on the seed, the split and i. An incomplete folder of the same arguments is written again.

    Args:
        root: A folder that is new, empty, or holds the same scenes.
        seed: Random seed, 0 or more.
        train: Number of training scenes.
        val: Number of validation scenes.
        step: Called after every scene.

    Returns:
        ``root`` as a path.

    Raises:
        ValueError: A number is out of range, or the folder holds other files.
    """
    root = Path(root)
    if seed < 0 or min(train, val) < 1:
        raise ValueError(f'seed={seed}, train={train}, val={val}: the seed must be 0 or more, the numbers 1 or more.')
    settings = dict(layout=LAYOUT, seed=seed, train=train, val=val)
    digits = load_digits()
    draws = {
        split: partial(draw_scene, Scans(digits.images[members] / 16, digits.target[members]))
        for split, members in split_scans(digits.target).items()
    }
    return write_scenes(root, settings, draws, CLASSES, step)


def write_scenes(
    root: Path,
    settings: dict[str, int],
    draws: Mapping[str, Draw],
    classes: Sequence[str],
    step: Callable[[], Any] = lambda: None,
) -> Path:
    """Write scenes of any kind, unless they are already complete; raises ValueError if the folder holds other files.

    Args:
        root: Folder.
        settings: What the scenes depend on: at least ``seed``, and the number of scenes of each split.
        draws: Split → function that draws one of its scenes, whose labels count the classes from 0.
        classes: Names of the classes.
        step: Called after every scene.
    """
    if is_complete(root, settings):
        return root
    root.mkdir(parents=True, exist_ok=True)
    (root / SETTINGS).write_text(json.dumps({**settings, 'complete': False}) + '\n')
    for number, (split, draw) in enumerate(draws.items()):
        write_split(root, split, draw, classes, (settings['seed'], number), settings[split], step)
    whole = root / f'{SETTINGS}.tmp'
    whole.write_text(json.dumps({**settings, 'complete': True}) + '\n')
    whole.replace(root / SETTINGS)
    return root


def is_complete(root: Path, settings: dict[str, int]) -> bool:
    """Check whether all scenes are there. Raises ValueError if the folder holds anything else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    advice = 'Give another folder, or delete this one.'
    if not (root / SETTINGS).is_file():
        raise ValueError(f'{root} has no {SETTINGS}, so it is not a folder of digit scenes. {advice}')
    try:
        found = json.loads((root / SETTINGS).read_text())
    except json.JSONDecodeError:  # interrupted while it was written, before any scene
        return False
    complete = found.pop('complete', None)
    if found != settings:
        raise ValueError(f'{root} holds the scenes of {found}, not of {settings}. {advice}')
    return bool(complete)


def write_split(
    root: Path,
    split: str,
    draw: Draw,
    classes: Sequence[str],
    seed: tuple[int, int],
    count: int,
    step: Callable[[], Any],
) -> None:
    """Write one split in all formats."""
    images_dir, listing = root / 'coco' / split, root / 'coco' / 'annotations' / f'{split}.json'
    links, maps = (root / 'ade' / kind / ADE_NAMES[split] for kind in ('images', 'annotations'))
    crops = root / 'crops' / split
    for folder in (images_dir, listing.parent, links, maps, crops):
        folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    lines: list[str] = []
    for number in range(count):
        scene = draw(np.random.default_rng((*seed, number)))
        name = f'{number:05d}.png'
        Image.fromarray(scene.image_HW3).save(images_dir / name)
        link_or_copy(images_dir / name, links / name)
        Image.fromarray(label_map(scene)).save(maps / name)
        height, width = scene.image_HW3.shape[:2]
        images.append(dict(id=number, file_name=name, height=height, width=width))
        objects = coco_objects(scene, number, first_id=len(annotations) + 1)
        annotations += objects
        for index, found in enumerate(objects):
            name = f'{number:05d}_{index}.png'
            crop(scene, found['bbox']).save(crops / name)
            lines.append(f'{name} {found["category_id"]}')
        step()
    categories = [dict(id=number, name=name) for number, name in enumerate(classes)]
    listing.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    crops.with_suffix('.txt').write_text('\n'.join(lines) + '\n')


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it where the file system has no hard links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def label_map(scene: Scene) -> npt.NDArray[np.uint8]:
    """Make an ADE20K label map, (H, W): 0 for background, else the digit + 1."""
    classes_N = np.array(scene.digits, dtype=np.uint8) + 1
    return np.max(scene.masks_NHW * classes_N[:, None, None], axis=0, initial=0).astype(np.uint8)


def coco_objects(scene: Scene, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """Make COCO annotations: box (left, top, width, height) around the visible pixels, area in pixels, mask as RLE."""
    objects = []
    for identity, (digit, mask_HW) in enumerate(zip(scene.digits, scene.masks_NHW, strict=True), first_id):
        rows, columns = (np.flatnonzero(mask_HW.any(axis)).tolist() for axis in (1, 0))
        left, top = columns[0], rows[0]
        objects.append(
            dict(
                id=identity,
                image_id=image_id,
                category_id=digit,
                bbox=[left, top, columns[-1] + 1 - left, rows[-1] + 1 - top],
                area=int(mask_HW.sum()),
                iscrowd=0,
                segmentation=dict(size=list(mask_HW.shape), counts=run_lengths(mask_HW)),
            )
        )
    return objects


def crop(scene: Scene, box: list[int]) -> Image.Image:
    """Crop the square around a box (left, top, width, height) with a margin, clipped to the image."""
    left, top, width, height = box
    half = (0.5 + MARGIN) * max(width, height)
    middle = (left + width / 2, top + height / 2)
    rows, columns = (slice(max(round(centre - half), 0), round(centre + half)) for centre in reversed(middle))
    return Image.fromarray(scene.image_HW3[rows, columns])


def run_lengths(mask_HW: npt.NDArray[np.bool_]) -> list[int]:
    """Encode a mask as COCO's uncompressed RLE: run lengths in column-major order, starting with zeros."""
    down = mask_HW.ravel(order='F')
    changes = np.flatnonzero(down[1:] != down[:-1]) + 1
    lengths = np.diff(np.concatenate([[0], changes, [down.size]])).tolist()
    return [0, *lengths] if down[0] else lengths
