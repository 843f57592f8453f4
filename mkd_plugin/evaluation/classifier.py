"""A fine-tuned classifier on other images: ImageNet-A, -R and -Sketch by folder names, and cue-conflict images."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from mkd_plugin.analysis.decisions import ShapeBias, ShapeBiasSummary, coarse_decisions
from mkd_plugin.checkpoint.read import read_checkpoint, weights_of
from mkd_plugin.evaluation.images import LabelledImages, shorten
from mkd_plugin.evaluation.progress import shown


def spans(*numbers: int | tuple[int, int]) -> tuple[int, ...]:
    """Numbers, and all from first to last of pairs."""
    pairs = [(number, number) if isinstance(number, int) else number for number in numbers]
    return tuple(index for first, last in pairs for index in range(first, last + 1))


# The 16 classes of Geirhos et al. (2019), as ids of ImageNet-1K; facts from the lists that were published with it.
SIXTEEN: dict[str, tuple[int, ...]] = dict(
    airplane=(404,),
    bear=spans((294, 297)),
    bicycle=(444, 671),
    bird=spans(8, (10, 16), (18, 20), (22, 24), (80, 83), (87, 96), (98, 100), (127, 133), (135, 145)),
    boat=(472, 554, 625, 814, 914),
    bottle=(440, 720, 737, 898, 899, 901, 907),
    car=(436, 511, 817),
    cat=spans((281, 286)),
    chair=(423, 559, 765, 857),
    clock=(409, 530, 892),
    dog=spans((152, 191), (193, 203), (205, 226), (228, 241), (243, 250), (252, 257), 259, (261, 263), (265, 268)),
    elephant=(385, 386),
    keyboard=(508, 878),
    knife=(499,),
    oven=(766,),
    truck=(555, 569, 656, 675, 717, 734, 864, 867),
)

CUES = re.compile(r'([a-z]+)\d*-([a-z]+)\d*')  # cat7-elephant2: the shape of a cat, the texture of an elephant


def load_classifier(config: str | Path, checkpoint: str | Path) -> nn.Module:
    """mmpretrain's classifier of a fine-tuning config, with a run's weights, in eval mode.

    Raises:
        ValueError: The file is no checkpoint, or not of exactly this classifier.
    """
    cfg = Config.fromfile(config)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model: nn.Module = MODELS.build({'data_preprocessor': cfg.get('data_preprocessor'), **cfg.model})
    weights = weights_of(read_checkpoint(checkpoint), checkpoint)
    own = model.state_dict()
    differ = sorted(
        {name for name in own if name not in weights or weights[name].shape != own[name].shape}
        | (set(weights) - set(own))
    )
    if differ:
        raise ValueError(
            f'{checkpoint} is not a checkpoint of the classifier of {config}: {shorten(differ)} are missing, of another shape, '
            'or not known. Give the config that it was fine-tuned with.'
        )
    model.load_state_dict(weights)
    return model.eval()


def logits_of(
    model: nn.Module, images: LabelledImages, *, batch_size: int, workers: int, title: str
) -> Iterator[tuple[slice, Tensor]]:
    """(which images, their logits (B, C)), batch by batch."""
    pixels: Any = model.data_preprocessor
    done = 0
    with shown(title, len(images)) as report:
        for batch in images.batches(0, len(images), batch_size=batch_size, workers=workers):
            inputs_BCHW = (batch.to(pixels.mean.device) * 255 - pixels.mean) / pixels.std
            yield slice(done, done + len(batch)), model(inputs_BCHW, mode='tensor').cpu()
            done += len(batch)
            report(done)


def read_classes(source: str | Path) -> list[str]:
    """Names of a classifier's classes in the order of its ids: those of a folder's folders, or a text file's lines.

    Raises:
        ValueError: There is neither, or nothing in it.
    """
    source = Path(source)
    if source.is_dir():
        names = sorted(path.name for path in source.iterdir() if path.is_dir())
    elif source.is_file():
        names = source.read_text().split()
    else:
        raise ValueError(
            f'{source} does not exist. Give the folder of the training images, or a file with a name in each line.'
        )
    if not names or len(set(names)) < len(names):
        raise ValueError(f'{source} has no names of classes, or one twice: {shorten(names)}.')
    return names


@torch.no_grad()
def folder_accuracy(
    model: nn.Module, images: LabelledImages, classes: Sequence[str], *, batch_size: int = 64, workers: int = 0
) -> float:
    """Top-1, per cent, of a folder whose class folders are some of the classifier's classes.

    Only the classes of the folder can be decided for, as is the custom for the 200 of ImageNet-A and -R.

    Raises:
        ValueError: A folder's name is not among ``classes``, or these are not as many as the classifier's.
    """
    places = {name: place for place, name in enumerate(classes)}
    unknown = [name for name in images.classes if name not in places]
    if unknown or not images.classes:
        raise ValueError(
            f'{images.folder}: its class folders {shorten(unknown)} are not among the {len(classes)} names of classes '
            f'({shorten(classes)}). Both have to use the same names: for ImageNet, n01440764 and so on.'
        )
    ids_K = torch.tensor([places[name] for name in images.classes])
    right = 0
    for rows, logits_BC in logits_of(model, images, batch_size=batch_size, workers=workers, title=images.folder.name):
        if logits_BC.shape[1] != len(classes):
            raise ValueError(f'There are {len(classes)} names for the {logits_BC.shape[1]} classes of the classifier.')
        right += int((logits_BC[:, ids_K].argmax(dim=1) == images.labels[rows]).sum())
    return 100 * right / len(images)


@torch.no_grad()
def shape_bias(
    model: nn.Module,
    images: LabelledImages,
    coarse: Mapping[str, Sequence[int]] = SIXTEEN,
    *,
    batch_size: int = 64,
    workers: int = 0,
) -> ShapeBiasSummary:
    """Shape bias on cue-conflict images (Geirhos et al. 2019), named ``<shape><number>-<texture><number>``.

    Raises:
        ValueError: A name without two of the coarse classes, a classifier without their ids, or no image with a conflict.
    """
    cues = [CUES.fullmatch(Path(name).stem) for name in images.names]
    wrong = [
        name for name, cue in zip(images.names, cues, strict=True) if cue is None or not {cue[1], cue[2]} <= set(coarse)
    ]
    if wrong:
        raise ValueError(
            f'{images.folder}: {shorten(wrong)} do not name a shape and a texture. Names are as cat7-elephant2.png, of the '
            f'classes {", ".join(coarse)}.'
        )
    shapes, textures = [cue[1] for cue in cues if cue], [cue[2] for cue in cues if cue]
    found = ShapeBias()
    for rows, logits_BC in logits_of(model, images, batch_size=batch_size, workers=workers, title='cue conflict'):
        found.update(coarse_decisions(logits_BC, coarse), shapes[rows], textures[rows])
    return found.result()
