"""The evaluation protocols by name: each takes features of both splits and yields rows of the result table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mkd_plugin.evaluation.features import Feature, FeatureStore, Report, Split, ignore
from mkd_plugin.evaluation.fewshot import FEW, SHOTS, few_shot
from mkd_plugin.evaluation.images import LabelledImages, Preprocessing, check_same_classes, open_images, read_annotation
from mkd_plugin.evaluation.knn import KS, knn_accuracy
from mkd_plugin.evaluation.linear import SGD, ProbeSettings, train_probes
from mkd_plugin.interop.open_model import OpenedModel


@dataclass(frozen=True)
class Data:
    """Location of the labelled images."""

    root: Path  #: Folder with ``train`` and ``val``, each with one folder per class
    train_list: Path | None = None  #: Annotation file to use instead of the class folders of ``train``
    val_list: Path | None = None  #: Annotation file to use instead of the class folders of ``val``
    resize: int | None = None  #: Short edge before the crop, pixels; by default image size · 256 / 224

    def check(self) -> None:
        """Raise ValueError if a folder or a list does not exist, or a line of a list has no label."""
        for folder in (self.root / 'train', self.root / 'val'):
            if not folder.is_dir():
                raise ValueError(
                    f'--data {self.root}: there is no folder {folder}. Give a folder that holds train and val.'
                )
        for option, path in (('--train-list', self.train_list), ('--val-list', self.val_list)):
            if path is not None and not path.is_file():
                raise ValueError(f'{option} {path}: there is no such file.')
            if path is not None:
                read_annotation(path)

    def open(self, subject: OpenedModel) -> tuple[LabelledImages, LabelledImages]:
        """Open both splits at the network's image size. Raises ValueError if their classes differ."""
        crop = subject.network.image_hw
        preprocessing = Preprocessing.standard(crop) if self.resize is None else Preprocessing(crop, self.resize)
        train = open_images(self.root / 'train', preprocessing, annotation=self.train_list)
        val = open_images(self.root / 'val', preprocessing, annotation=self.val_list)
        check_same_classes(train, val)
        return train, val


@dataclass(frozen=True)
class Plan:
    """What to measure, and how."""

    features: tuple[Feature, ...] = (Feature(pool='cls'), Feature(pool='mean'))  #: Layers and poolings
    ks: tuple[int, ...] = KS  #: Numbers of neighbours of k-NN
    shots: tuple[int, ...] = SHOTS  #: Labels per class of few-shot
    draws: int = 3  #: Draws of these labels
    probe: ProbeSettings = field(default=SGD)  #: Training recipe of linear probes
    few: ProbeSettings = field(default=FEW)  #: Training recipe of few-shot heads
    device: str = 'cpu'  #: Device to compute on

    def __post_init__(self) -> None:
        if not self.features or len(set(self.features)) < len(self.features):
            raise ValueError(f'features={[str(feature) for feature in self.features]}: give at least one, each once.')
        if any(feature.pool == 'none' for feature in self.features):
            raise ValueError("pool='none': evaluation needs one vector per image; use 'cls' or 'mean'.")
        for option in ('ks', 'shots'):
            if any(number < 1 for number in getattr(self, option)):
                raise ValueError(f'{option}={getattr(self, option)}: every number must be at least 1.')


@dataclass(frozen=True)
class Row:
    """One number of the result table."""

    protocol: str  #: Name of the protocol
    setting: str  #: Such as 'k = 20'
    feature: str  #: Input
    top1: float  #: Per cent; NaN if it could not be measured
    std: float | None = None  #: Standard deviation over draws
    rate: float | None = None  #: Learning rate that was chosen
    note: str = ''  #: Remark for the reader


def compute_features(
    store: FeatureStore, subject: OpenedModel, data: Data, plan: Plan, *, report: Report = ignore
) -> Split:
    """Compute the features of both splits, or read them from the cache."""
    train, val = data.open(subject)
    share = len(train) / (len(train) + len(val))
    return Split(
        store.features(subject, train, plan.features, report=lambda done: report(share * done)),
        store.features(subject, val, plan.features, report=lambda done: report(share + (1 - share) * done)),
    )


def run_knn(split: Split, plan: Plan, report: Report) -> Iterator[Row]:
    """Run k-NN on every feature; a k that is too large gives a row without a number."""
    labels_N = split.train.labels_N
    possible = [k for k in plan.ks if 1 <= k <= len(labels_N)]
    for number, feature in enumerate(plan.features, 1):
        train_ND, val_MD = (part.values[feature].to(plan.device) for part in (split.train, split.val))
        top1 = knn_accuracy(train_ND, labels_N, val_MD, split.val.labels_N, ks=possible) if possible else {}
        for k in plan.ks:
            note = '' if k in top1 else f'not measured: k can be 1 … {len(labels_N)}, the number of training images'
            yield Row('knn', f'k = {k}', str(feature), top1.get(k, math.nan), note=note)
        report(number / len(plan.features))


def run_linear(split: Split, plan: Plan, report: Report) -> Iterator[Row]:
    """Train linear probes on all features together, and keep the best head of each feature."""
    heads = train_probes(split.train, split.val, plan.probe, device=plan.device, report=report)
    rates = ', '.join(f'{rate:g}' for rate in plan.probe.rates)
    for feature in plan.features:
        converged = [head for head in heads if head.feature == feature and not math.isnan(head.top1)]
        if converged:
            best = max(converged, key=lambda head: head.top1)
            note = f'best of the learning rates {rates}, chosen on the validation set'
            yield Row('linear', 'all labels', str(feature), best.top1, rate=best.rate, note=note)
        else:
            note = f'not measured: all heads diverged at the learning rates {rates}'
            yield Row('linear', 'all labels', str(feature), math.nan, note=note)


def run_few_shot(split: Split, plan: Plan, report: Report) -> Iterator[Row]:
    """Train few-shot heads for each k and feature; a k that is too large gives a row without a number."""
    rates = ', '.join(f'{rate:g}' for rate in plan.few.rates)
    options: dict[str, Any] = dict(draws=plan.draws, settings=plan.few, device=plan.device)
    note = f'{plan.draws} draws; best of the learning rates {rates}, chosen on the validation set'
    todo = [(shots, feature) for shots in plan.shots for feature in plan.features]
    for number, (shots, feature) in enumerate(todo, 1):
        setting = f'{shots} labels per class'
        try:
            found = few_shot(split.train, split.val, feature, shots=shots, **options)
        except ValueError as error:
            yield Row('fewshot', setting, str(feature), math.nan, note=f'not measured: {error}')
        else:
            yield Row('fewshot', setting, str(feature), found.mean, found.std, found.rate, note)
        report(number / len(todo))


Protocol = Callable[[Split, Plan, Report], Iterator[Row]]
PROTOCOLS: dict[str, Protocol] = dict(knn=run_knn, linear=run_linear, fewshot=run_few_shot)
# the fields of Plan that a protocol's numbers depend on, besides the features
SETTINGS: dict[str, tuple[str, ...]] = dict(knn=('ks',), linear=('probe',), fewshot=('shots', 'draws', 'few'))
