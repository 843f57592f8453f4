"""The protocols by name: each takes features of both splits and gives rows of the table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from mkd_plugin.evaluation.features import Feature, Split
from mkd_plugin.evaluation.fewshot import FEW, SHOTS, few_shot
from mkd_plugin.evaluation.knn import KS, knn_accuracy
from mkd_plugin.evaluation.linear import SGD, ProbeSettings, train_probes
from mkd_plugin.evaluation.progress import shown


@dataclass(frozen=True)
class Row:
    """One number of the table.

    Attributes:
        protocol: Its name.
        setting: Which of its numbers.
        feature: What it was measured on.
        top1: Per cent; NaN if it could not be measured.
        std: Over draws.
        rate: The one that was chosen.
        note: What a reader has to know.
    """

    protocol: str
    setting: str
    feature: str
    top1: float
    std: float | None = None
    rate: float | None = None
    note: str = ''


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        features: Layers and poolings.
        ks: Neighbours of k-NN.
        shots: Labels a class of few-shot.
        draws: Of labels.
        probe: How linear probes are trained.
        few: Likewise, of few-shot.
        device: Where.
    """

    features: tuple[Feature, ...] = (Feature(pool='cls'), Feature(pool='mean'))
    ks: tuple[int, ...] = KS
    shots: tuple[int, ...] = SHOTS
    draws: int = 3
    probe: ProbeSettings = field(default=SGD)
    few: ProbeSettings = field(default=FEW)
    device: str = 'cpu'

    def __post_init__(self) -> None:
        if not self.features or len(set(self.features)) < len(self.features):
            raise ValueError(f'features={[str(feature) for feature in self.features]}: give some, each once.')


def run_knn(split: Split, plan: Plan) -> Iterator[Row]:
    """k-NN of every feature; a k that is too large is a row without a number."""
    labels_N = split.train.labels_N
    fitting = [k for k in plan.ks if 1 <= k <= len(labels_N)]
    for feature in plan.features:
        train_ND, val_MD = (part.values[feature].to(plan.device) for part in (split.train, split.val))
        found = knn_accuracy(train_ND, labels_N, val_MD, split.val.labels_N, ks=fitting) if fitting else {}
        for k in plan.ks:
            note = '' if k in found else f'not measured: k can be 1 … {len(labels_N)}, the number of training images'
            yield Row('knn', f'k = {k}', str(feature), found.get(k, math.nan), note=note)


def run_linear(split: Split, plan: Plan) -> Iterator[Row]:
    """The best head of each feature; the heads of all features are trained together."""
    with shown('linear probe', plan.probe.epochs) as report:
        heads = train_probes(split.train, split.val, plan.probe, device=plan.device, report=report)
    rates = ', '.join(f'{rate:g}' for rate in plan.probe.rates)
    for feature in plan.features:
        own = [head for head in heads if head.feature == feature and not math.isnan(head.top1)]
        if own:
            best = max(own, key=lambda head: head.top1)
            note = f'best rate of {rates}, chosen by the validation set'
            yield Row('linear', 'all labels', str(feature), best.top1, rate=best.rate, note=note)
        else:
            note = f'not measured: all heads diverged at the rates {rates}'
            yield Row('linear', 'all labels', str(feature), math.nan, note=note)


def run_few_shot(split: Split, plan: Plan) -> Iterator[Row]:
    """Mean and deviation for each k and feature; a k that is too large is a row without a number."""
    rates = ', '.join(f'{rate:g}' for rate in plan.few.rates)
    for shots in plan.shots:
        for feature in plan.features:
            setting = f'{shots} labels a class'
            try:
                with shown(f'few-shot, k = {shots}, {feature}', plan.draws) as report:
                    found = few_shot(
                        split.train,
                        split.val,
                        feature,
                        shots=shots,
                        draws=plan.draws,
                        settings=plan.few,
                        device=plan.device,
                        report=report,
                    )
            except ValueError as error:
                yield Row('fewshot', setting, str(feature), math.nan, note=f'not measured: {error}')
                continue
            note = f'{plan.draws} draws; best rate of {rates}, chosen by the validation set'
            yield Row('fewshot', setting, str(feature), found.mean, found.std, found.rate, note)


PROTOCOLS: dict[str, Callable[[Split, Plan], Iterator[Row]]] = dict(
    knn=run_knn, linear=run_linear, fewshot=run_few_shot
)


def check_protocols(names: Sequence[str]) -> None:
    """Raise ValueError unless all are known, and there is one."""
    unknown = [name for name in names if name not in PROTOCOLS]
    if unknown or not names:
        raise ValueError(f'protocols {unknown} are not known: use some of {", ".join(PROTOCOLS)}.')
