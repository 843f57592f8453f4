"""Write images and people's answers in model-vs-human's published layout, from crops of scikit-learn's photographs."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_images

CLASSES = (
    'airplane', 'bear', 'bicycle', 'bird', 'boat', 'bottle', 'car', 'cat', 'chair', 'clock', 'dog', 'elephant', 'keyboard',
    'knife', 'oven', 'truck',
)  # fmt: skip
SETS = {  # data set → experiment, number field, conditions, name of the second column
    'colour': ('cl', '40', ('cr', 'bw'), 'Session'),
    'uniform-noise': ('nse', '10', ('0.00', '0.10', '0.35'), 'Session'),
    'edge': ('edg', '00', ('0',), 'session'),
}


def write_sets(root: Path, *, people: int = 3, side: int = 24) -> tuple[Path, Path]:
    """Write each of :data:`SETS` with one image per class and condition; return the folders of images and of answers."""
    draw = np.random.default_rng(0)
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for name, (experiment, number, conditions, session) in SETS.items():
        shown = [(condition, category) for category in CLASSES for condition in conditions]
        images = {
            place: f'{place[1]}{trial}.png' if name == 'edge' else f'n{trial:08d}_{trial}.png'
            for trial, place in enumerate(shown)
        }
        for trial, (condition, category) in enumerate(shown, 1):
            path = root / 'datasets' / name
            image = images[condition, category]
            if name == 'edge':
                path = path / category / image
            else:
                path = path / 'dnn/session-1' / f'{trial:04d}_{experiment}_dnn_{condition}_{category}_{number}_{image}'
            path.parent.mkdir(parents=True, exist_ok=True)
            left, top = draw.integers(0, 300, 2)
            crop = photographs[trial % 2].crop((left, top, left + 120, top + 120)).resize((side, side))
            distorted(crop, name, condition, draw).save(path)
        for person in range(1, people + 1):
            rows = []
            for trial, place in enumerate(draw.permutation(shown).tolist(), 1):
                answer = draw.choice([place[1], 'na', *CLASSES], p=[0.6, 0.1, *[0.3 / 16] * 16])
                shown_as = f'{trial:04d}_{experiment}_s{person:02d}_{"_".join(place)}_{number}_{images[tuple(place)]}'
                rows.append([f'subject-{person:02d}', 1, trial, 0.5, answer, place[1], place[0], shown_as])
            head = ['subj', session, 'trial', 'rt', 'object_response', 'category', 'condition', 'imagename']
            write_table(root / 'raw-data' / name / f'{name}_subject-{person:02d}_session_1.csv', [head, *rows])
    return root / 'datasets', root / 'raw-data'


def write_table(path: Path, rows: list[list[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w', newline='') as file:
        csv.writer(file).writerows(rows)


def distorted(image: Image.Image, name: str, condition: str, draw: np.random.Generator) -> Image.Image:
    if condition == 'bw':
        return image.convert('L').convert('RGB')
    if name == 'edge':
        return image.filter(ImageFilter.FIND_EDGES)
    width = float(condition) if name == 'uniform-noise' else 0
    noisy = np.asarray(image) / 255 + draw.uniform(-width, width, (*image.size, 3))
    return Image.fromarray((255 * noisy.clip(0, 1)).astype(np.uint8))
