"""The answer of an analysis: the few numbers that tell networks apart, with spread, direction, and a sentence each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import floor, log10, sqrt
from typing import Any

import numpy as np

from mkd_plugin.reporting.analysis.settings import Report
from mkd_plugin.reporting.page import Section, Table, brief, texts

SIMILAR = 0.05  # relative difference below which numbers without a spread count as similar
MENTIONED = 3  # changes in a sentence

Results = Mapping[str, Any]  # measurement → numbers, of one network


@dataclass(frozen=True)
class Number:
    """A value with its spread, if that is known."""

    value: float
    spread: float | None = None

    def __str__(self) -> str:
        if self.spread is None or not self.spread > 0:
            return brief(self.value)
        digits = max(0, 1 - floor(log10(self.spread)))  # two significant digits of the spread
        return f'{self.value:,.{digits}f} ± {self.spread:,.{digits}f}'.replace('-', '−')


def last_block(layers: Results) -> Any:
    return layers[max((name for name in layers if name.startswith('block:')), key=lambda name: int(name[6:]))]


def heads(key: str) -> Callable[[Results], Number]:
    """Mean and standard deviation over the heads of the last block."""

    def read(layers: Results) -> Number:
        values = np.array(last_block(layers)[key], dtype=float)
        return Number(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None)

    return read


def mean_spectrum(layers: Results) -> Number:
    """Mean relative log singular value."""
    return Number(float(np.mean(last_block(layers)['relative_R'])))


def token_spectrum(found: Results) -> Number:
    """Mean relative log singular value, or the share of the largest k (dbot)."""
    if found['flavour'] == 'dbot':
        return Number(float(last_block(found['layers'])[-1]))
    return mean_spectrum(found['layers'])


def rise(found: Results) -> Number:
    """Median rise of the loss over the plane."""
    losses = np.array(found['losses'], dtype=float)
    return Number(float(np.nanmedian(losses) - losses[len(losses) // 2, len(losses) // 2]))


# Name → its unit, or what it relates to; the measurement it comes from; how it is read from that measurement's results.
QUANTITIES: dict[str, tuple[str, str, Callable[[Any], Number]]] = {
    'attention distance': ('pixels, last block', 'attention', heads('distance_H')),
    'attention entropy': ('fraction of the maximum, last block', 'attention', heads('entropy_fraction_H')),
    'NMI of queries and keys': ('0 … 1, last block', 'attention', heads('nmi_H')),
    'amplitude of the highest frequency': (
        'Δ log amplitude, last block',
        'fourier',
        lambda of: Number(last_block(of)['relative_F'][-1]),
    ),
    'feature variance': ('over the grid, last block', 'variance', lambda of: Number(last_block(of))),
    'spectrum of tokens': ('mean Δ log singular value, last block', 'token-spectrum', token_spectrum),
    'spectrum of images': ('mean Δ log singular value, last block', 'image-spectrum', mean_spectrum),
    'largest eigenvalue': ('of the Hessian', 'hessian', lambda of: Number(max(of['eigenvalues']))),
    'trace': ('of the Hessian', 'hessian', lambda of: Number(of['trace'], of['trace_standard_error'])),
    'rise of the loss': ('nats, median over the landscape', 'landscape', rise),
}


def unit_of(name: str, report: Report) -> str:
    """What a quantity relates to; of the spectrum of tokens, the two flavours are different numbers."""
    if name == 'spectrum of tokens' and report.settings['flavour'] == 'dbot':
        return 'share of the 5 largest singular values, last block'
    return QUANTITIES[name][0]


def measured(report: Report) -> dict[str, dict[str, Number]]:
    """Name of a quantity → model → number, for all that were measured."""
    found: dict[str, dict[str, Number]] = {}
    for name, (_, measurement, read) in QUANTITIES.items():
        for model, results in report.results.items():
            if measurement in results:
                number = read(results[measurement])
                if np.isfinite(number.value):
                    found.setdefault(name, {})[model] = number
    return found


def direction(number: Number, base: Number) -> str:
    """'higher', 'lower', or 'similar' if the difference is within the spread of both (or within 5 % without one)."""
    difference = number.value - base.value
    spreads = [each.spread for each in (number, base) if each.spread is not None]
    margin = sqrt(sum(spread**2 for spread in spreads)) if len(spreads) == 2 else SIMILAR * abs(base.value)
    if abs(difference) <= margin:
        return 'similar'
    return 'higher' if difference > 0 else 'lower'


def answer_section(report: Report) -> Section:
    """The table of the answer: quantities down, models across, each compared with the first model."""
    first, *others = report.models
    rows = []
    for name, numbers in measured(report).items():
        base = numbers.get(first)
        cells = [compared(numbers.get(model), None if model == first else base) for model in report.models]
        rows.append([f'{name}\n({unit_of(name, report)})', *cells])
    text = texts('analysis')
    caption = ' '.join([text['spread'], *([text['comparison'].format(first=first)] if others else [])])
    return Section('In brief', tables=[Table(['quantity', *report.models], rows, caption)] if rows else [])


def compared(number: Number | None, base: Number | None) -> str:
    """A cell: the number, and its difference to the first model in words."""
    if number is None:
        return '–'
    if base is None:
        return str(number)
    word = direction(number, base)
    arrow = {'higher': '▲ ', 'lower': '▼ ', 'similar': ''}[word]
    difference = number.value - base.value
    return f'{number}\n{arrow}{word} ({"+" if difference >= 0 else "−"}{brief(abs(difference))})'


def findings(report: Report) -> dict[str, str]:
    """Model after the first → its largest changes, in words."""
    first, *others = report.models
    numbers = measured(report)
    sentences = {}
    for model in others:
        both = {name: (of[model], of[first]) for name, of in numbers.items() if model in of and first in of}
        changed = {}  # sentence → size of the change relative to the larger of the two numbers
        for name, (number, base) in both.items():
            if (word := direction(number, base)) != 'similar':
                change = abs(number.value - base.value) / max(abs(number.value), abs(base.value))
                changed[f'{word} {name} ({brief(base.value)} → {brief(number.value)})'] = change
        largest = sorted(changed, key=lambda text: -changed[text])[:MENTIONED]
        said = ', '.join(largest) if changed else 'no number below differs by more than its spread'
        if both:
            sentences[f'{model} against {first}:'] = f'{said}.'
    return sentences
