"""Which figures a report has: the numbers of each measurement as panels, with the words that stand for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mkd_plugin.analysis.report.captions import CAPTIONS, DISTANCES, SPECTRA, Caption
from mkd_plugin.analysis.report.figures import (
    Floats,
    compare_depths,
    density_figure,
    heads_figure,
    heat_figure,
    layers_figure,
    maps_figure,
    surface_figure,
)
from mkd_plugin.analysis.report.images import ImageSet
from mkd_plugin.analysis.report.result import Report
from mkd_plugin.reporting.html import Panel

HEADS = {
    'distance': ('distance_H', 'pixels'),
    'entropy': ('entropy_fraction_H', 'entropy / ln L'),
    'nmi': ('nmi_H', 'NMI'),
}
CUT = 4.0  # surfaces end at this many times the greatest loss at their middles, or above the flattest surface

Found = Mapping[str, dict[str, Any]]  # model → what was measured of it


@dataclass
class Section:
    """Figures under one heading.

    Attributes:
        measurement: Where the numbers come from.
        caption: Heading and sentences.
        panels: Figures.
        table: Rows of numbers that no figure has, with a head; may be empty.
        missing: Network → why it is not here.
    """

    measurement: str
    caption: Caption
    panels: list[Panel]
    table: list[list[str]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


def sections_of(report: Report, images: ImageSet) -> Iterator[Section]:
    """Every section that was asked for, in the order of ``CAPTIONS``."""
    for name, caption in CAPTIONS.items():
        measurement = 'attention' if name in HEADS else name
        found = {model: results[measurement] for model, results in report.results.items() if measurement in results}
        missing = {
            model: reasons[measurement]
            for part in (report.failed, report.left_out)
            for model, reasons in part.items()
            if measurement in reasons
        }
        if not found and not missing:
            continue
        section = Section(measurement, filled(caption, report, found), [], missing=missing)
        if found:
            section.panels = list(panels_of(name, found, report, images))
        if name == 'hessian':
            section.table = hessian_table(found)
        yield section


def panels_of(name: str, found: Found, report: Report, images: ImageSet) -> Iterator[Panel]:
    """The figures of a section."""
    if name in HEADS:
        return head_panels(found, *HEADS[name], title=CAPTIONS[name].title)
    if name == 'maps':
        return map_panels(found, report, images)
    if name == 'similarity':
        return similarity_panels(found, report)
    draw: Callable[[Found], Iterator[Panel]] = {
        'fourier': fourier_panels,
        'variance': variance_panels,
        'token-spectrum': token_panels,
        'image-spectrum': image_panels,
        'hessian': hessian_panels,
        'landscape': landscape_panels,
    }[name]
    return draw(found)


def filled(caption: Caption, report: Report, found: Found) -> Caption:
    """The caption with what was really used."""
    images = report.data['images']
    first = next(iter(found.values()), {})
    lengths = [len(layer['log_R']) for layer in first.values() if isinstance(layer, dict) and 'log_R' in layer]
    words = {
        '{distance}': DISTANCES[report.settings['flavour']],
        '{spectrum}': SPECTRA[report.settings['flavour']],
        '{images}': str(images),
        '{rank}': str(max(lengths, default=0)),
        '{directions}': 'random directions' if report.settings['directions'] == 'random' else 'top eigenvectors',
    }
    computed = caption.computed
    for word, value in words.items():
        computed = computed.replace(word, value)
    return caption._replace(computed=computed)


def head_panels(found: Found, key: str, ylabel: str, *, title: str) -> Iterator[Panel]:
    """All networks' means, then every network's heads."""
    heads = {model: np.array([layer[key] for layer in layers.values()]) for model, layers in found.items()}
    curves = {model: (depths_of_blocks(len(values)), values.mean(axis=1)) for model, values in heads.items()}
    yield Panel(compare_depths('mean over heads', ylabel, curves), f'{title} over depth: {ends(curves)}.')
    limits = common_limits(list(heads.values()))
    for model, values in heads.items():
        words = f'{title} per block and head of {model}: from {values.min():.3g} to {values.max():.3g}.'
        yield Panel(heads_figure(model, ylabel, values, limits), words)


def map_panels(found: Found, report: Report, images: ImageSet) -> Iterator[Panel]:
    """A figure a network."""
    for model, maps in found.items():
        height, width = report.models[model]['image_hw']
        pictures = images.read(maps['images'], (height, width)).permute(0, 2, 3, 1).double().numpy()
        words = (
            f'What {len(maps["queries"])} query patches of {len(pictures)} images attend to in {model}, as heat maps.'
        )
        yield Panel(maps_figure(model, pictures, maps), words)


def fourier_panels(found: Found) -> Iterator[Panel]:
    """Highest frequency over depth of all networks, then every network's blocks."""
    curves = {}
    for model, layers in found.items():
        highest = np.array([layers[name]['relative_F'][-1] for name in layers])
        curves[model] = (np.linspace(0, 1, len(highest)), highest)
    words = f'Relative log amplitude of the highest frequency over depth: {ends(curves)}.'
    yield Panel(compare_depths('highest frequency', 'Δ log amplitude', curves), words)
    spectra = {
        model: [
            (np.array(layer['frequency_F']), np.array(layer['relative_F']))
            for name, layer in layers.items()
            if not name.startswith('middle')
        ]
        for model, layers in found.items()
    }
    yield from layer_panels(spectra, ('frequency / π', 'Δ log amplitude'), 'Fourier spectra')


def variance_panels(found: Found) -> Iterator[Panel]:
    """One figure."""
    curves = {model: (np.linspace(0, 1, len(of)), np.array(list(of.values()))) for model, of in found.items()}
    words = f'Variance of the feature maps over depth: {ends(curves)}.'
    yield Panel(compare_depths('variance over the grid', 'variance', curves, log=True), words)


def token_panels(found: Found) -> Iterator[Panel]:
    """A figure a network, by the flavour's definition."""
    if next(iter(found.values()))['flavour'] == 'cl-vs-mim':
        yield from image_panels({model: of['layers'] for model, of in found.items()})
        return
    spectra = {
        model: [(np.arange(1.0, 1 + len(ratio)), np.array(ratio)) for ratio in of['layers'].values()]
        for model, of in found.items()
    }
    yield from layer_panels(spectra, ('k', 'share of the first k'), 'Shares of the largest singular values')


def image_panels(found: Found) -> Iterator[Panel]:
    """A figure a network: log singular values by rank."""
    spectra = {
        model: [(np.arange(1.0, 1 + len(layer['relative_R'])), np.array(layer['relative_R'])) for layer in of.values()]
        for model, of in found.items()
    }
    yield from layer_panels(spectra, ('rank', 'Δ log singular value'), 'Log singular values')


def layer_panels(
    spectra: Mapping[str, Sequence[tuple[Floats, Floats]]], labels: tuple[str, str], title: str
) -> Iterator[Panel]:
    """A figure a network, a line a layer, all on the same scale: the blocks', which an input's spectrum may leave."""
    limits = common_limits([y for layers in spectra.values() for _, y in layers[1:]])
    for model, layers in spectra.items():
        last = layers[-1][1]
        words = (
            f'{title} of {len(layers)} layers of {model}; those of the last go from {last[0]:.3g} to {last[-1]:.3g}.'
        )
        yield Panel(layers_figure(model, labels, layers, limits), words)


def similarity_panels(found: Found, report: Report) -> Iterator[Panel]:
    """Each network with itself, then the first with every other."""
    tables = [(model, model, table) for model, table in found.items()]
    tables += [(pair['first'], pair['second'], pair) for pair in report.pairs]
    for first, second, table in tables:
        rows, columns = (
            [name.split(':')[-1] if name != 'input:0' else 'in' for name in table[side]] for side in ('rows', 'columns')
        )
        values = np.array(table['values_RS'])
        title = f'{first}, within' if first == second else f'{first} and {second}'
        words = f'CKA of {len(rows)} layers of {first} with {len(columns)} of {second}; of the last two {values[-1, -1]:.2f}.'
        yield Panel(heat_figure(title, (first, rows), (second, columns), values), words)


def hessian_panels(found: Found) -> Iterator[Panel]:
    """All networks' densities."""
    curves = {model: tuple(np.array(of['curve'][axis]) for axis in ('at', 'density')) for model, of in found.items()}
    largest = ', '.join(f'{model} {max(of["eigenvalues"]):.3g}' for model, of in found.items())
    yield Panel(density_figure(curves), f'Densities of the eigenvalues of the Hessian; the largest: {largest}.')  # type: ignore[arg-type]


def hessian_table(found: Found) -> list[list[str]]:
    """Eigenvalues and trace."""
    rows = [['model', 'loss', 'largest eigenvalues (by magnitude)', 'trace ± standard error']]
    for model, of in found.items():
        marked = zip(of['eigenvalues'], of['eigenvalues_converged'], strict=True)
        values = '; '.join(f'{brief(value)}{"" if converged else " (not converged)"}' for value, converged in marked)
        error = of['trace_standard_error']
        spread = '?' if error is None else brief(error)
        rows.append([model, f'{of["loss"]:.3g}', values, f'{brief(of["trace"])} ± {spread}'])
    return rows


def landscape_panels(found: Found) -> Iterator[Panel]:
    """A surface a network, all on the same scale."""
    surfaces = {model: np.array(of['losses'], dtype=np.float64) for model, of in found.items()}
    middle = {model: losses[len(losses) // 2, len(losses) // 2] for model, losses in surfaces.items()}
    flattest = min(np.nanmax(losses) for losses in surfaces.values())
    top = max(CUT * max(middle.values()), 1.5 * flattest)
    top = min(top, max(np.nanmax(losses) for losses in surfaces.values()))
    for model, losses in surfaces.items():
        steps = np.array(found[model]['steps'])
        words = (
            f'Loss landscape of {model}: {middle[model]:.3g} in the middle, at most {np.nanmax(losses):.3g} around it.'
        )
        yield Panel(surface_figure(model, steps, losses, (0.0, float(top))), words)


def brief(value: float) -> str:
    """Three digits, or all before the point."""
    return f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}'


def depths_of_blocks(count: int) -> Floats:
    """1 / n … 1."""
    return np.arange(1, count + 1) / count


def ends(curves: Mapping[str, tuple[Floats, Floats]]) -> str:
    """First and last value of every curve, in words."""
    return '; '.join(f'{name} from {values[0]:.3g} to {values[-1]:.3g}' for name, (_, values) in curves.items())


def common_limits(arrays: Sequence[Floats]) -> tuple[float, float]:
    """A range that holds all of them, with a margin."""
    low, high = min(float(a.min()) for a in arrays), max(float(a.max()) for a in arrays)
    margin = 0.05 * ((high - low) or 1.0)
    return low - margin, high + margin
