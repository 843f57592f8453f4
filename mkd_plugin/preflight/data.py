"""Which files a config needs, and which of them are not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mkd_plugin.preflight.config import LOADERS


@dataclass(frozen=True)
class Missing:
    """A file or folder that is not there.

    Attributes:
        path: Where it is looked for.
        option: The option that names it, as ``--cfg-options`` takes it.
        expected: What should be there.
    """

    path: str
    option: str
    expected: str


def check_work_dir(work_dir: str | Path) -> None:
    """Try whether logs and checkpoints can be written, before anything is built; the folder itself is not made.

    Raises:
        ValueError: They cannot.
    """
    if '://' in str(work_dir):
        return
    folder = Path(work_dir).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        reason = f'{there} is a file' if there.is_file() else f'{there}: {error.strerror}'
        raise ValueError(
            f'work_dir={work_dir}: nothing can be written there ({reason}). Name another folder with --work-dir, or make '
            'this one writable.'
        ) from error


def missing_files(cfg: Config) -> list[Missing]:
    """Every file and folder of the config's datasets and networks that does not exist.

    Addresses (``https://…``, ``s3://…``) are not looked up.
    """
    found: list[Missing] = []
    for loader in LOADERS:
        if cfg.get(loader):
            found += missing_data(cfg[loader].get('dataset', {}), f'{loader}.dataset')
    for option, path in checkpoints(cfg.get('model', {}), 'model'):
        if not path:
            found.append(Missing("''", option, 'a checkpoint: the config leaves it to you'))
        elif not exists(path):
            found.append(Missing(path, option, 'a checkpoint (.pth)'))
    if cfg.get('load_from') and not exists(cfg.load_from):
        found.append(Missing(cfg.load_from, 'load_from', 'the checkpoint to start or go on from'))
    return list({(entry.path, entry.expected): entry for entry in found}.values())


def exists(path: str) -> bool:
    """Whether a path is there; True for an address."""
    return '://' in path or Path(path).expanduser().exists()


def missing_data(dataset: Any, option: str) -> list[Missing]:
    """The missing files of a dataset, and of those that it wraps."""
    found: list[Missing] = []
    if not isinstance(dataset, dict):
        return found
    for inner in (dataset.get('dataset'), *(dataset.get('datasets') or ())):
        found += missing_data(inner, f'{option}.dataset')
    root = str(dataset.get('data_root') or '')
    prefixes = dataset.get('data_prefix')
    own_labels = isinstance(prefixes, dict) and not {'img', 'img_path'}.isdisjoint(prefixes)  # mmdet's, mmseg's
    labels = dataset.get('with_label', not own_labels and not str(dataset.get('type')).endswith('ImageFolder'))
    kind = 'a folder of images' + (', a sub-folder a class' if labels and not dataset.get('ann_file') else '')
    if str(dataset.get('type')).endswith('ShardDataset'):
        kind = 'a folder of tar shards'
    if root and not exists(root):
        parts = ', '.join(part for part in data_parts(dataset) if part)
        return [*found, Missing(root, f'{option}.data_root', f'{kind}{f" (in it {parts})" if parts else ""}')]
    for part in data_parts(dataset):
        path = part if os.path.isabs(part) or not root else os.path.join(root, part)
        if part and not exists(path):
            annotations = part == dataset.get('ann_file')
            found.append(
                Missing(
                    path,
                    f'{option}.{"ann_file" if annotations else "data_prefix"}',
                    'the list of images' if annotations else kind,
                )
            )
    return found


def data_parts(dataset: Mapping[str, Any]) -> list[str]:
    """What a dataset reads below its root: annotation file, folders, and the split that mmpretrain's ImageNet makes one."""
    prefix = dataset.get('data_prefix') or ''
    parts = list(prefix.values()) if isinstance(prefix, dict) else [prefix]
    if dataset.get('split') and not any(parts) and not dataset.get('ann_file'):
        parts = [dataset['split']]
    return [str(part) for part in (dataset.get('ann_file') or '', *parts)]


def checkpoints(node: Any, option: str) -> Iterator[tuple[str, str]]:
    """(option, path) of everything called ``checkpoint`` below a part of a config."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == 'checkpoint' and isinstance(value, str):
                yield f'{option}.{key}', value
            else:
                yield from checkpoints(value, f'{option}.{key}')
    elif isinstance(node, (list, tuple)):
        for number, value in enumerate(node):
            yield from checkpoints(value, f'{option}.{number}')


def without_missing_checkpoints(node: Any) -> Any:
    """A copy of a config's part in which random weights stand in for the files that are not there."""
    if isinstance(node, (list, tuple)):
        return type(node)(without_missing_checkpoints(value) for value in node)
    if not isinstance(node, dict):
        return node
    path = node.get('checkpoint')
    if isinstance(path, str) and (not path or not exists(path)):
        if node.get('type') == 'Pretrained':
            return None
        node = {**node, 'checkpoint': None, 'seed': 0}
    return {key: without_missing_checkpoints(value) for key, value in node.items()}


SCOPES = ('mmdet', 'mmseg')  # mmpretrain has data sets that fetch themselves
SOURCES = {  # by a part of the folder's name
    'digit_scenes': 'they are made by `python tools/dataset_tools/make_digit_scenes.py`',
    'coco': 'COCO 2017 is on https://cocodataset.org: train2017.zip, val2017.zip, annotations_trainval2017.zip',
    'ade': 'ADE20K is http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip',
}


def check_data(cfg: Config, loaders: Sequence[str]) -> None:
    """Refuse a detector's or segmentor's config whose data are not there.

    Args:
        cfg: The config, with the command line's changes.
        loaders: Which of its loaders will be used.

    Raises:
        ValueError: Files or folders are missing; the message shows where each of the expected ones must be.
    """
    text = missing_tree(cfg, loaders)
    if text is not None:
        raise ValueError(text)


def missing_tree(cfg: Config, loaders: Sequence[str]) -> str | None:
    """The expected files and folders, and which of them are missing; None if none is, or another host's config is given."""
    if cfg.get('default_scope') not in SCOPES:
        return None
    datasets = [cfg[name].get('dataset', {}) for name in loaders if cfg.get(name)]
    while any('dataset' in dataset for dataset in datasets):  # what wraps another has no files
        datasets = [dataset.get('dataset', dataset) for dataset in datasets]
    parts: dict[str, dict[str, bool]] = {}
    for dataset in datasets:
        root = str(dataset.get('data_root') or '')
        for part in filter(None, data_parts(dataset)):
            parts.setdefault(root, {})[part] = exists(str(Path(root, part)) if '://' not in root else root)
    if all(there for found in parts.values() for there in found.values()):
        return None
    lines = ['Data of this config are missing. It expects']
    for root, found in parts.items():
        source = next((text for name, text in SOURCES.items() if name in root.lower()), None)
        lines += [
            f'    {root}',
            *(f'        {part:<44} {"" if there else "missing"}'.rstrip() for part, there in found.items()),
        ]
        lines += [f'    ({source})'] * (source is not None)
    return '\n'.join(
        [*lines, 'Put or link them there, or name another folder of this form: --cfg-options data_root=DIR/.']
    )
