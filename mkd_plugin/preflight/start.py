"""Checks of what a run starts from: its checkpoint, its shards, and the labels of its lists."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmengine.config import Config
from torch import nn

from mkd_plugin.checkpoint.read import read_checkpoint
from mkd_plugin.compat.weights import load_state_dict
from mkd_plugin.datasets.shards.dataset import find_tars
from mkd_plugin.engine.checkpoints import check_resumable
from mkd_plugin.evaluation.images import read_annotation
from mkd_plugin.preflight.checks import datasets_of


def check_start(cfg: Config, model: nn.Module) -> None:
    """Compare the checkpoint that a run starts from with the model, which may be on the meta device.

    Addresses, and the folders of sharded runs, are checked when the run loads them. Raises ValueError if the file is
    damaged or of another network, or a run cannot be resumed from it.
    """
    source = cfg.get('load_from')
    if not source or not Path(source).is_file():
        return
    checkpoint = read_checkpoint(source, lazy=True)
    if cfg.get('resume'):
        check_resumable(checkpoint, source)
        return
    weights = checkpoint.get('state_dict', checkpoint)
    if isinstance(weights, Mapping):
        plain = {name.removeprefix('module.'): value for name, value in weights.items()}
        load_state_dict(model, plain, source=str(source), strict=False)


def check_samples(cfg: Config, loaders: Sequence[str]) -> None:
    """Check shards and the labels of lists, on the first process only; missing files are left to ``check_data``.

    Raises ValueError if a folder has no shards, a line of a list no label, or a label is not one of the head's classes.
    """
    if int(os.environ.get('RANK', '0')):
        return
    classes = ((cfg.get('model') or {}).get('head') or {}).get('num_classes')
    for loader in loaders:
        for _, dataset in datasets_of((cfg.get(loader) or {}).get('dataset'), loader):
            kind = getattr(dataset.get('type'), '__name__', str(dataset.get('type'))).rpartition('.')[2]
            root, listed = str(dataset.get('data_root') or ''), dataset.get('ann_file')
            if '://' in root or dataset.get('backend_args') is not None:
                continue
            if kind == 'ShardDataset':
                find_tars(Path(root, dataset.get('data_prefix') or ''), dataset.get('shards', '*.tar'))
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
