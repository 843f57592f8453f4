"""What the folders of COCO, ADE20K and the like must look like, said before anything is built if they do not.

The hosts only name the first file that they cannot open, after the model is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config

from mkd_plugin.launch.files import data_parts, exists

__all__ = ['check_data', 'missing_tree']

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
