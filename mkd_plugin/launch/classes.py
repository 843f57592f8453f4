"""Whether the heads of a config are for as many classes as its data have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS

__all__ = ['check_classes']

# they tell other things apart than the data's classes: objects from background, stuff
OTHERS = ('rpn_head', 'semantic_head')


def check_classes(cfg: Config) -> None:
    """Refuse a config whose heads and data do not have the same number of classes, before anything is built.

    mmdet would train on without a word, mmseg until a label is met that its head does not have. Data whose classes are only
    known from their files, and models without heads, are let through.

    Raises:
        ValueError: The numbers differ; both are named, and where they are said.
    """
    heads = {
        where: number
        for key, part in (cfg.get('model') or {}).items()
        if key.endswith('head') and key not in OTHERS
        for where, number in numbers_of(part, f'model.{key}')
    }
    if not heads:
        return
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        for dataset in datasets_of((cfg.get(loader) or {}).get('dataset')):
            classes = classes_of(dataset, cfg.get('default_scope') or 'mmengine')
            wrong = [f'{where}.num_classes={number}' for where, number in heads.items() if number != len(classes or ())]
            if classes is not None and wrong:
                raise ValueError(
                    f'{", ".join(wrong)}: but the {dataset["type"]} of {loader} has {len(classes)} classes, '
                    f'{", ".join(map(str, classes[:3]))}{", …" if len(classes) > 3 else ""}. Let the heads have as many, or '
                    "name the data's own with metainfo=dict(classes=(…)) in every dataset."
                )


def numbers_of(node: Any, where: str) -> Iterator[tuple[str, int]]:
    """Every ``num_classes`` in a head, with its place."""
    if isinstance(node, (list, tuple)):
        for index, part in enumerate(node):
            yield from numbers_of(part, f'{where}.{index}')
    elif isinstance(node, dict):
        if isinstance(node.get('num_classes'), int):
            yield where, node['num_classes']
        for key, part in node.items():
            if key not in OTHERS:
                yield from numbers_of(part, f'{where}.{key}')


def datasets_of(node: Any) -> Iterator[dict[str, Any]]:
    """A dataset's config, or those that it wraps."""
    if not isinstance(node, dict):
        return
    inner = [*(node.get('datasets') or []), *([node['dataset']] if 'dataset' in node else [])]
    for part in inner:
        yield from datasets_of(part)
    if not inner:
        yield node


def classes_of(dataset: dict[str, Any], scope: str) -> tuple[Any, ...] | None:
    """What a dataset tells apart: its config's ``metainfo``, else its class's; None if neither says."""
    classes = (dataset.get('metainfo') or {}).get('classes')
    if classes is None:
        kind = dataset['type']
        if isinstance(kind, str):
            with DATASETS.switch_scope_and_registry(scope) as registry:
                kind = registry.get(kind)
        classes = (getattr(kind, 'METAINFO', None) or {}).get('classes')
    return tuple(classes) if isinstance(classes, (list, tuple)) else None
