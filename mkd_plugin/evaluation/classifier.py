"""Robustness of fine-tuned classifiers: accuracy on ImageNet-A, -R and -Sketch, and shape bias on cue-conflict images."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mkd_plugin.analysis.decisions import ShapeBias, ShapeBiasSummary, coarse_decisions
from mkd_plugin.checkpoint.read import read_checkpoint, weights_of
from mkd_plugin.checkpoint.report import shorten
from mkd_plugin.compat.weights import load_state_dict
from mkd_plugin.datasets.folder import read_list
from mkd_plugin.evaluation.features import Report, ignore
from mkd_plugin.evaluation.images import LabelledImages, class_folders

# Coarse class → ids of ImageNet-1K (Geirhos et al. 2019).
SIXTEEN: dict[str, list[int]] = yaml.safe_load(Path(__file__).with_name('sixteen_classes.yml').read_text())
CUES = re.compile(r'([a-z]+)\d*-([a-z]+)\d*')  # cat7-elephant2: a cat's shape with an elephant's texture


def load_classifier(config: str | Path, checkpoint: str | Path) -> nn.Module:
    """Load mmpretrain's classifier of a fine-tuning config; see :func:`load_trained`."""
    return load_trained(Config.fromfile(config), checkpoint)


def load_trained(cfg: Config, checkpoint: str | Path) -> nn.Module:
    """Build the network of a host's config in eval mode, with a checkpoint of it. Raises ValueError if that does not fit."""
    model_cfg = copy.deepcopy(cfg.model)
    model_cfg.backbone.init_cfg = None  # the checkpoint has every weight
    model_cfg.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmpretrain')):
        model: nn.Module = MODELS.build(model_cfg)
    try:
        load_state_dict(model, weights_of(read_checkpoint(checkpoint), checkpoint), source=str(checkpoint), strict=True)
    except RuntimeError as error:
        reason = f'is not a checkpoint of the network of {cfg.filename}. Give the config of its fine-tuning.'
        raise ValueError(f'{checkpoint} {reason} ({error})') from error
    return model.eval()


@torch.no_grad()
def logits_of(
    model: nn.Module, images: LabelledImages, *, batch_size: int, workers: int, report: Report
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the rows of a batch of images and their logits, (B, C)."""
    pixels: Any = model.data_preprocessor
    done = 0
    for batch in images.batches(0, len(images), batch_size=batch_size, workers=workers):
        inputs_BCHW = (batch.to(pixels.mean.device) * 255 - pixels.mean) / pixels.std
        yield slice(done, done + len(batch)), model(inputs_BCHW, mode='tensor').cpu()
        done += len(batch)
        report(done / len(images))


def read_classes(source: str | Path) -> list[str]:
    """Read the class names of a classifier, in the order of its ids, from a folder's subfolders or a text file's lines.

    Raises ValueError if the source does not exist, is empty, or names a class twice.
    """
    source = Path(source)
    if source.is_dir():
        names = class_folders(source)
    elif source.is_file():
        names = [line.strip() for line in read_list(source)]
    else:
        raise ValueError(
            f'{source} does not exist. Give the folder of the training images, or a file with a class name in each line.'
        )
    if not names or len(set(names)) < len(names):
        raise ValueError(f'{source} has no class names, or one twice: {shorten(names) or "none"}.')
    return names


def folder_accuracy(
    model: nn.Module,
    images: LabelledImages,
    classes: Sequence[str],
    *,
    batch_size: int = 64,
    workers: int = 0,
    report: Report = ignore,
) -> float:
    """Return the top-1 accuracy, in per cent, on class folders that are a subset of the classifier's classes.

    Predictions are restricted to the classes of the folder, as is usual for the 200 classes of ImageNet-A and -R. Raises
    ValueError if a folder's name is not in ``classes``, or ``classes`` does not have the classifier's length.
    """
    ids = {name: number for number, name in enumerate(classes)}
    unknown = [name for name in images.classes if name not in ids]
    if unknown or not images.classes:
        raise ValueError(
            f'{images.folder}: its class folders {shorten(unknown) or "none"} are not among the {len(classes)} class names '
            f'({shorten(classes)}). Use the same names in both, for ImageNet n01440764 and so on.'
        )
    ids_K = torch.tensor([ids[name] for name in images.classes])
    correct = 0
    for rows, logits_BC in logits_of(model, images, batch_size=batch_size, workers=workers, report=report):
        if logits_BC.shape[1] != len(classes):
            raise ValueError(
                f'{len(classes)} names for the {logits_BC.shape[1]} classes of the classifier. Give those of its training set.'
            )
        correct += int((logits_BC[:, ids_K].argmax(dim=1) == images.labels[rows]).sum())
    return 100 * correct / len(images)


def shape_bias(
    model: nn.Module,
    images: LabelledImages,
    coarse: Mapping[str, Sequence[int]] = SIXTEEN,
    *,
    batch_size: int = 64,
    workers: int = 0,
    report: Report = ignore,
) -> ShapeBiasSummary:
    """Measure the shape bias on cue-conflict images (Geirhos et al. 2019), named ``<shape><number>-<texture><number>``.

    Raises ValueError if a file name has an unknown class, the classifier lacks the ids, or no image has a cue conflict.
    """
    cues = [CUES.fullmatch(Path(name).stem) for name in images.names]
    wrong = [
        name for name, cue in zip(images.names, cues, strict=True) if cue is None or not {cue[1], cue[2]} <= set(coarse)
    ]
    if wrong:
        raise ValueError(
            f'{images.folder}: {shorten(wrong)} do not name a shape and a texture. Name files like cat7-elephant2.png, with '
            f'the classes {", ".join(coarse)}.'
        )
    shapes, textures = [cue[1] for cue in cues if cue], [cue[2] for cue in cues if cue]
    bias = ShapeBias()
    for rows, logits_BC in logits_of(model, images, batch_size=batch_size, workers=workers, report=report):
        bias.update(coarse_decisions(logits_BC, coarse), shapes[rows], textures[rows])
    return bias.result()
