"""Predictions on validation images, kept beside the training that made them."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mkd_plugin.benchmark.jobs import Job, Trainings
from mkd_plugin.engine.checkpoints import newest_checkpoint

DRAWN = ('detection', 'segmentation')
QUALITY = 80  # of WebP


@dataclass(frozen=True)
class Pictures:
    """Of a training.

    Attributes:
        job: Which.
        truth: Files, one for each image: what is annotated.
        predicted: Files in the same order.
    """

    job: Job
    truth: tuple[Path, ...]
    predicted: tuple[Path, ...]


def draw(trainings: Trainings, jobs: Sequence[Job]) -> tuple[list[Pictures], dict[str, str]]:
    """Draw what the first seed of every start predicts, unless it is drawn already.

    Returns:
        Pictures, and what could not be drawn: training → why.
    """
    found, missing = [], {}
    for job in jobs:
        if job.task not in DRAWN or job.seed != 0 or not trainings.settings.pictures or not trainings.result(job):
            continue
        try:
            found.append(pictures_of(trainings, job))
        except ValueError as error:
            missing[str(job)] = str(error)
    return found, missing


def pictures_of(trainings: Trainings, job: Job) -> Pictures:
    """The pictures of a training. Raises ValueError if it left no checkpoint."""
    from mkd_plugin.reporting.predictions import draw_predictions  # mmdet and mmseg are slow to import

    folder, count = trainings.place(job) / 'pictures', trainings.settings.pictures
    names = [(folder / f'{n}-truth.webp', folder / f'{n}-predicted.webp') for n in range(count)]
    last = folder / f'of-{count}'  # the images are spread over the data set: others of another number
    if not last.is_file():
        checkpoint = newest_checkpoint(trainings.place(job))
        if checkpoint is None:
            raise ValueError('its config keeps no checkpoint to draw with')
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():  # the hosts' chatter about themselves
            warnings.simplefilter('ignore')
            drawn = list(draw_predictions(trainings.config(job), checkpoint, count))
        for files, images in zip(names, drawn, strict=False):
            for file, image_HW3 in zip(files, images, strict=True):
                Image.fromarray(image_HW3).save(file, quality=QUALITY)
        last.touch()
    pairs = [pair for pair in names if pair[1].is_file()]
    return Pictures(job, tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs))


def data_uri(file: Path) -> str:
    """A WebP file for the middle of a page."""
    return f'data:image/webp;base64,{base64.b64encode(file.read_bytes()).decode()}'
