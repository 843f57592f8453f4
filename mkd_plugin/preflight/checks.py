"""Checks of a config before anything is built: strategy, hosts, classes, work dir, data and checkpoints."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS
from mmengine.runner import Runner

from mkd_plugin.checkpoint.read import read_checkpoint
from mkd_plugin.compat.hosts import explain_missing_host
from mkd_plugin.registry import KINDS, check_values, kinds_of, parameters_of

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
DENSE = ('mmdet', 'mmseg')

# Heads whose classes are not the data's: objects against background, stuff.
OTHER_HEADS = ('rpn_head', 'semantic_head')

RUNNER = 'mkd_plugin.StrategyRunner'
DISTRIBUTED = ('DDPStrategy', 'mkd_plugin.ShardedStrategy')
STRATEGIES = ('SingleDeviceStrategy', *DISTRIBUTED)

SOURCES = {  # by a part of the folder's name
    'digit_scenes': 'they are made by `python tools/dataset_tools/make_digit_scenes.py`',
    'digits': 'they are made by `mkd make-digits DIR`',
    'imagenet': 'ImageNet-1K is on https://image-net.org: train and val, each with a folder for each class, n01440764 …',
    'coco': 'COCO 2017 is on https://cocodataset.org: train2017.zip, val2017.zip, annotations_trainval2017.zip',
    'ade': 'ADE20K is http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip',
}


def check_kinds(cfg: Config) -> None:
    """Raise ValueError if a top-level entry is not of the kind that mmengine's ``Runner`` takes, such as ``model=5``."""
    for key, hint in parameters_of(Runner)[0].items():
        kinds = [kind for kind in kinds_of(hint) if kind in KINDS]  # what a file can hold: no built objects
        if kinds:
            check_values('The config', {key: cfg.get(key)}, {key: reduce(or_, kinds)})


def check_hosts_of(cfg: Config, name: str) -> None:
    """Raise ValueError if a config is for mmdet or mmseg and that is not installed."""
    scope = cfg.get('default_scope')
    message = explain_missing_host(scope, f'the config {name}') if scope in DENSE else None
    if message is not None:
        raise ValueError(message)


def check_strategy(cfg: Config) -> None:
    """Raise ValueError for a strategy that would not train, or not with the guarantees of this package."""
    strategy, runner = cfg.get('strategy'), cfg.get('runner_type')
    if runner == 'FlexibleRunner':
        raise ValueError(
            'runner_type=FlexibleRunner: it resumes from damaged files and names the weights by their wrapper. Use '
            f'{RUNNER}, which has the same options.'
        )
    if strategy is None:
        return
    name = strategy_name(strategy)
    if runner is None:
        raise ValueError(
            f'strategy={name}: the ordinary Runner would ignore it. Add runner_type={RUNNER!r}, or the base '
            'configs/_base_/strategies/fsdp.py.'
        )
    if name not in STRATEGIES:
        raise ValueError(
            f'strategy={name} is not supported; there are {list(STRATEGIES)}. mmengine calls no hook for what DeepSpeed '
            'and ColossalAI save and load, so exact resume, safe loading and stages would not work, and its own '
            'FSDPStrategy cannot resume. To shard weights and moments, use mkd_plugin.ShardedStrategy.'
        )
    if name in DISTRIBUTED and cfg.get('launcher', 'none') == 'none':
        raise ValueError(f'strategy={name} needs a launcher: tools/dist_train.sh CONFIG GPUS, or tools/slurm_train.sh.')


def strategy_name(strategy: Any) -> str:
    """Return a strategy's name in a config, mmengine's own without their package."""
    kind = strategy['type']
    name = kind if isinstance(kind, str) else f'{kind.__module__.partition(".")[0]}.{kind.__name__}'
    return name.removeprefix('mmengine.')


def check_classes(cfg: Config) -> None:
    """Raise ValueError if heads and data have different numbers of classes: mmdet would train silently, mmseg until it meets a
    label that its head lacks.

    Data whose classes are known from their files alone, and models without heads, are not checked.
    """
    heads = {
        where: number
        for key, part in (cfg.get('model') or {}).items()
        if key.endswith('head') and key not in OTHER_HEADS
        for where, number in head_classes(part, f'model.{key}')
    }
    for option, dataset in datasets_of(cfg) if heads else ():
        classes = data_classes(dataset, cfg.get('default_scope') or 'mmengine')
        wrong = [f'{where}.num_classes={number}' for where, number in heads.items() if number != len(classes or ())]
        if classes is not None and wrong:
            raise ValueError(
                f'{", ".join(wrong)}: but the {dataset["type"]} of {option.partition(".")[0]} has {len(classes)} classes, '
                f'{", ".join(map(str, classes[:3]))}{", …" if len(classes) > 3 else ""}. Set num_classes to that number, '
                'or name the classes of your data with metainfo=dict(classes=(…)) in every dataset.'
            )


def head_classes(head: Any, where: str) -> Iterator[tuple[str, int]]:
    """Yield the place and value of every ``num_classes`` in a head."""
    for place, number in parts_of(head, where):
        path = place.split('.')
        if path.pop() == 'num_classes' and isinstance(number, (int, str)) and not {*path} & {*OTHER_HEADS}:
            check_values('.'.join(path), {'num_classes': number}, {'num_classes': int})
            yield '.'.join(path), int(number)


def data_classes(dataset: dict[str, Any], scope: str) -> tuple[Any, ...] | None:
    """Return the classes that a dataset's config states, else those of its Python class; None if neither does."""
    classes = (dataset.get('metainfo') or {}).get('classes') or dataset.get('classes')
    if classes is None:
        classes = (getattr(class_of(dataset, scope), 'METAINFO', None) or {}).get('classes')
    return tuple(classes) if isinstance(classes, (list, tuple)) else None


def parts_of(node: Any, where: str = '') -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and value of all that a part of a config holds, the outer before the inner."""
    numbered = enumerate(node) if isinstance(node, (list, tuple)) else ()
    for key, part in node.items() if isinstance(node, dict) else numbered:
        here = f'{where}.{key}' if where else str(key)
        yield here, part
        yield from parts_of(part, here)


def type_name(kind: Any) -> str:
    """Return the name of a component, which a config gives as a string or as the class."""
    return kind if isinstance(kind, str) else getattr(kind, '__name__', repr(kind))


def class_of(dataset: dict[str, Any], scope: str) -> Any:
    """Return the class of a dataset; None if no registry has it."""
    kind = dataset.get('type')
    if isinstance(kind, str):
        with DATASETS.switch_scope_and_registry(scope) as registry:
            return registry.get(kind)
    return kind


def datasets_of(cfg: Config, loaders: Sequence[str] = LOADERS) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield option and config of the datasets of these loaders; of one that wraps others, theirs."""

    def inside(node: Any, option: str) -> Iterator[tuple[str, dict[str, Any]]]:
        if not isinstance(node, dict):
            return
        inner = [*(node.get('datasets') or []), *([node['dataset']] if 'dataset' in node else [])]
        for part in inner:
            yield from inside(part, f'{option}.dataset')
        if not inner:
            yield option, node

    for loader in loaders:
        yield from inside((cfg.get(loader) or {}).get('dataset'), f'{loader}.dataset')


def local_datasets(cfg: Config, loaders: Sequence[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield option, class name and config of the datasets on disk and of shards, which only the first process checks."""
    for option, dataset in datasets_of(cfg, () if int(os.environ.get('RANK', '0')) else loaders):
        kind, there = type_name(dataset.get('type')).rpartition('.')[2], '://' in str(dataset.get('data_root') or '')
        if (kind == 'ShardDataset' or not there) and dataset.get('backend_args') is None:
            yield option, kind, dataset


def check_work_dir(work_dir: str | Path) -> None:
    """Raise ValueError if logs and checkpoints cannot be written; the folder itself is not made."""
    if '://' in str(work_dir):
        return
    folder = Path(work_dir).absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        reason = f'{existing} is a file' if existing.is_file() else f'{existing}: {error.strerror}'
        raise ValueError(
            f'work_dir={work_dir}: nothing can be written there ({reason}). Name another folder with --work-dir, or make '
            'this one writable.'
        ) from error


@dataclass(frozen=True)
class Missing:
    """A file or folder that does not exist."""

    path: str  #: Where it is expected
    option: str  #: The option that names it, as ``--cfg-options`` takes it
    expected: str  #: What it should be


def missing_files(cfg: Config) -> list[Missing]:
    """Return every missing file and folder of a config's datasets and networks. Addresses (``https://…``) are not tried."""
    found: list[Missing] = []
    for option, dataset in datasets_of(cfg):
        found += missing_data(dataset, option)
    for option, path in checkpoints_of(cfg):
        if not path:
            found.append(Missing("''", option, 'a checkpoint: the config leaves it to you'))
        elif not exists(path):
            found.append(Missing(path, option, 'a checkpoint (.pth)'))
    if cfg.get('load_from') and not exists(cfg.load_from):
        found.append(Missing(cfg.load_from, 'load_from', 'the checkpoint to start or continue from'))
    return list({(entry.path, entry.expected): entry for entry in found}.values())


def missing_data(dataset: dict[str, Any], option: str) -> list[Missing]:
    """Return the missing files and folders of a dataset that wraps no other."""
    root, parts = str(dataset.get('data_root') or ''), data_parts(dataset)
    prefixes, annotations = dataset.get('data_prefix'), dataset.get('ann_file')
    own_labels = isinstance(prefixes, dict) and not {'img', 'img_path'}.isdisjoint(prefixes)  # as in mmdet and mmseg
    labels = dataset.get('with_label', not own_labels and not str(dataset.get('type')).endswith('ImageFolder'))
    kind = 'a folder of images' + (', one sub-folder for each class' if labels and not annotations else '')
    if str(dataset.get('type')).endswith('ShardDataset'):
        kind = 'a folder of tar shards'
    if root and not exists(root):
        inside = f' with {", ".join(parts)} in it' if parts else ''
        return [Missing(root, f'{option}.data_root', kind + inside)]
    return [
        Missing(path, f'{option}.ann_file', 'the list of images')
        if part == annotations
        else Missing(path, f'{option}.data_prefix', kind)
        for part in parts
        if not exists(path := os.path.join(root, part))
    ]


def data_parts(dataset: dict[str, Any]) -> list[str]:
    """Return the annotation file and the folders below a dataset's root; mmpretrain's ImageNet turns a split into one."""
    prefix = dataset.get('data_prefix') or ''
    parts = [dataset.get('ann_file') or '', *(prefix.values() if isinstance(prefix, dict) else [prefix])]
    return [str(part) for part in parts if part] or [str(part) for part in [dataset.get('split')] if part]


def exists(path: str) -> bool:
    """Whether a path exists; True for an address."""
    return '://' in path or Path(path).expanduser().exists()


def checkpoints_of(cfg: Config) -> list[tuple[str, str]]:
    parts = parts_of(cfg.get('model'), 'model')
    return [(option, path) for option, path in parts if option.endswith('.checkpoint') and isinstance(path, str)]


def without_checkpoints(node: Any, *, missing_only: bool = False) -> Any:
    """Copy a part of a config, with random weights in place of its files, or of the missing ones only."""
    if isinstance(node, (list, tuple)):
        return type(node)(without_checkpoints(value, missing_only=missing_only) for value in node)
    if not isinstance(node, dict):
        return node
    if missing_only and str(node.get('type')).rpartition('.')[2] == 'CachedTeacher':  # a trial step writes nothing
        node = node.get('teacher') or {}
    path = node.get('checkpoint')
    if isinstance(path, str) and not (missing_only and path and exists(path)):
        if node.get('type') == 'Pretrained':
            return None
        if node.get('seed') is None:  # else the teacher itself refuses to have both
            node = {**node, 'checkpoint': None, 'seed': 0}
    return {key: without_checkpoints(value, missing_only=missing_only) for key, value in node.items()}


def check_data(cfg: Config, loaders: Sequence[str]) -> None:
    """Raise ValueError if data of these loaders are missing, with the expected tree, or a checkpoint of the model is."""
    text = missing_tree(cfg, loaders)
    if text is not None:
        raise ValueError(text)
    for option, path in checkpoints_of(cfg):
        if not path or not exists(path):
            raise ValueError(f'There is no checkpoint {path!r}. Name one with --cfg-options {option}=FILE.')
        if '://' not in path:
            read_checkpoint(path, lazy=True)  # raises if it is none
    if cfg.get('load_from') and not exists(cfg.load_from):
        raise ValueError(f'There is no checkpoint {cfg.load_from}, which load_from or --resume names.')


def missing_tree(cfg: Config, loaders: Sequence[str]) -> str | None:
    """Return the tree of expected files with the missing ones marked, or None if nothing is missing.

    Data sets that download themselves are left out.
    """
    parts: dict[str, dict[str, bool]] = {}
    for _, dataset in datasets_of(cfg, loaders):
        root = str(dataset.get('data_root') or '')
        for part in () if downloads(dataset, cfg) else data_parts(dataset) or ([''] if root else []):
            parts.setdefault(root, {})[part] = exists(os.path.join(root, part))
    if all(there for found in parts.values() for there in found.values()):
        return None
    lines = ['Data of this config are missing. It expects']
    for root, found in parts.items():
        lines.append(f'    {root}' + ('    missing' if found.get('') is False else ''))
        lines += [f'        {part:<44} {"" if there else "missing"}'.rstrip() for part, there in found.items() if part]
        lines += [f'    ({text})' for name, text in SOURCES.items() if re.search(f'(?<![a-z]){name}', root.lower())][:1]
    return '\n'.join([*lines, 'Put or link them there, or name another such folder: --cfg-options data_root=DIR/.'])


def downloads(dataset: dict[str, Any], cfg: Config) -> bool:
    """Whether a data set fetches its files by itself, as mmpretrain's small ones do."""
    kind = class_of(dataset, cfg.get('default_scope') or 'mmengine')
    return kind is None or 'download' in parameters_of(kind)[0]


def check_schedule(cfg: Config) -> None:
    """Raise ValueError for a run without length, and for a warm-up that does not end before its schedule does."""
    length_of = cfg.train_cfg.get('max_epochs'), cfg.train_cfg.get('max_iters')
    if all(length is None for length in length_of) or any(length is not None and length < 1 for length in length_of):
        raise ValueError(
            f'train_cfg: max_epochs={length_of[0]}, max_iters={length_of[1]}: one of them must be at least 1.'
        )
    schedule = cfg.get('param_scheduler') or []
    schedule = [schedule] if isinstance(schedule, dict) else schedule
    for by_epoch, length in zip((True, False), length_of, strict=True):
        entries = [entry for entry in schedule if entry.get('by_epoch', True) == by_epoch]
        ends = [entry['end'] for entry in entries if entry.get('end') is not None]
        for number, entry in enumerate(entries):
            end, begin = entry.get('end'), entry.get('begin', 0)
            if end is not None and begin >= end:
                raise ValueError(
                    f'param_scheduler: {entry["type"]} begins at {begin} and ends at {end}: begin must be less.'
                )
            last = max([*ends[:number], *ends[number + 1 :]], default=length)
            if 'LinearLR' in str(entry['type']) and begin == 0 and None not in (end, last) and end >= last:
                raise ValueError(
                    f'param_scheduler: the warm-up, {entry["type"]}, ends at {end}, and the schedule at {last} '
                    f'{"epochs" if by_epoch else "iterations"}. Let the warm-up end earlier.'
                )
