"""The page of an analysis: its sections, with the figures of each measurement."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mkd_plugin.reporting import figures
from mkd_plugin.reporting.analysis.measure import ImageSet
from mkd_plugin.reporting.analysis.settings import Report
from mkd_plugin.reporting.analysis.summary import answer_section, findings, measured, unit_of
from mkd_plugin.reporting.figures import Floats, common_limits
from mkd_plugin.reporting.page import Document, Panel, Section, listed, render, texts

# Section → key of the number in the results of 'attention', its label.
HEADS = {
    'distance': ('distance_H', 'pixels'),
    'entropy': ('entropy_fraction_H', 'entropy / ln L'),
    'nmi': ('nmi_H', 'NMI'),
}
STEP = re.compile(r'(epoch|iter|stage)_(\d+)')  # name of a run's checkpoint
CUT = 4.0  # surfaces are cut at this multiple of the loss of the networks, or above the flattest surface

Found = Mapping[str, dict[str, Any]]  # model → results of one measurement


def analysis_document(report: Report, images: ImageSet | None) -> Document:
    """The whole page; ``images`` may be None if attention maps were not measured."""
    count, data = len(report.models), report.data
    lead = texts('analysis')['lead'].format(
        networks=f'{count} vision transformer{"s" if count > 1 else ""}',
        images=data['images'],
        folder=Path(data['root']).resolve().name,
    )
    settings = Section(
        'Models and settings',
        body=render('analysis_settings.html.j2', report=report),
        notes={'All numbers:': 'report.json, next to this page.'},
    )
    title = f'Representation analysis: {listed(list(report.models), "models")}'
    sections = [*sections_of(report, images), settings]
    return Document(title, lead, findings(report), answer_section(report), sections)


def sections_of(report: Report, images: ImageSet | None) -> Iterator[Section]:
    """Every section that was measured, or that could not be. Only attention maps need the images."""
    if panels := list(training_panels(report)):
        yield Section(**texts('analysis')['training'], panels=panels)
    for name, text in texts('analysis')['sections'].items():
        measurement = 'attention' if name in HEADS else name
        found = {model: results[measurement] for model, results in report.results.items() if measurement in results}
        missing = {
            model: f'is not shown: {reasons[measurement]}'
            for part in (report.failed, report.left_out)
            for model, reasons in part.items()
            if measurement in reasons
        }
        if found or missing:
            yield Section(
                title=text['title'],
                group=text['group'],
                reading=text['reading'],
                panels=list(panels_of(name, text['title'], found, report, images)) if found else (),
                body=render('hessian_table.html.j2', found=found) if name == 'hessian' and found else '',
                notes={'How:': computed(text['computed'], report, found), 'Papers:': text['found']},
                missing=missing,
            )


def computed(text: str, report: Report, found: Found) -> str:
    """The sentence on how a measurement was made, with the values that were used."""
    first = next(iter(found.values()), {})
    ranks = [len(of['relative_R']) for of in first.values() if isinstance(of, dict) and 'relative_R' in of]
    heads: dict[str, list[str]] = {}
    for model, of in found.items():
        heads.setdefault(of.get('head', 'fitted'), []).append(model)
    losses = (texts('analysis')['losses'][head].format(models=listed(names, 'models')) for head, names in heads.items())
    return text.format(
        loss=' '.join(losses),
        distance=texts('analysis')['distances'][report.settings['flavour']],
        spectrum=texts('analysis')['spectra'][report.settings['flavour']],
        images=report.data['images'],
        rank=max(ranks, default=0),
        directions='random directions' if report.settings['directions'] == 'random' else 'top eigenvectors',
    )


def panels_of(name: str, title: str, found: Found, report: Report, images: ImageSet | None) -> Iterator[Panel]:
    if name in HEADS:
        return head_panels(found, *HEADS[name], title=title)
    draw: dict[str, Callable[[Found], Iterator[Panel]]] = {
        'maps': partial(map_panels, report=report, images=images),
        'fourier': fourier_panels,
        'variance': variance_panels,
        'token-spectrum': token_panels,
        'image-spectrum': spectrum_panels,
        'similarity': partial(similarity_panels, report=report),
        'hessian': hessian_panels,
        'landscape': landscape_panels,
    }
    return draw[name](found)


def training_panels(report: Report) -> Iterator[Panel]:
    """Every number of the answer over the steps of a run, one line per run; none without two checkpoints of one run."""
    runs: dict[tuple[str, str], dict[int, str]] = {}  # unit of the steps, folder and part → step → model
    for model, about in report.models.items():
        path, mark, part = about['source'].partition('#')
        if step := STEP.fullmatch(Path(path).stem):
            runs.setdefault((step[1], f'{Path(path).absolute().parent}{mark}{part}'), {})[int(step[2])] = model
    runs = {run: steps for run, steps in runs.items() if len(steps) > 1}
    root = os.path.commonpath([Path(folder).parent for _, folder in runs]) if runs else ''
    for unit in dict.fromkeys(unit for unit, _ in runs):
        for name, numbers in measured(report).items():
            curves: dict[str, tuple[Floats, Floats]] = {}
            for (kind, folder), steps in runs.items():
                points = [(step, numbers[model].value) for step, model in sorted(steps.items()) if model in numbers]
                if kind == unit and points:
                    at, values = np.array(points).T
                    curves[os.path.relpath(folder, root)] = (at, values)
            if curves:
                figure, _ = figures.compare_lines(name, (unit, unit_of(name, report)), curves, '.-')
                ends = '; '.join(f'{run} from {y[0]:.3g} to {y[-1]:.3g}' for run, (_, y) in curves.items())
                yield Panel(figure, f'{name} over training: {ends}.')


def head_panels(found: Found, key: str, ylabel: str, *, title: str) -> Iterator[Panel]:
    """The means of all networks over depth, then the heads of each network."""
    heads = {model: np.array([layer[key] for layer in layers.values()]) for model, layers in found.items()}
    means = {model: values.mean(axis=1) for model, values in heads.items()}
    yield depth_panel('mean over heads', ylabel, means, title, from_input=False)
    limits = common_limits(list(heads.values()))
    for model, values in heads.items():
        alt_text = f'{title} per block and head of {model}: from {values.min():.3g} to {values.max():.3g}.'
        yield Panel(figures.heads_figure(model, ylabel, values, limits), alt_text)


def depth_panel(title: str, ylabel: str, values: Mapping[str, Floats], what: str, **options: bool) -> Panel:
    ends = '; '.join(f'{model} from {of[0]:.3g} to {of[-1]:.3g}' for model, of in values.items())
    return Panel(figures.compare_depths(title, ylabel, values, **options), f'{what} over depth: {ends}.')


def map_panels(found: Found, report: Report, images: ImageSet | None) -> Iterator[Panel]:
    assert images is not None, 'attention maps are drawn on images'
    for model, maps in found.items():
        height, width = report.models[model]['image_hw']
        pictures = images.read(maps['images'], (height, width)).permute(0, 2, 3, 1).double().numpy()
        queries = len(maps['queries'])
        alt_text = f'Heat maps of what {queries} query patches of {len(pictures)} images attend to in {model}.'
        yield Panel(figures.maps_figure(model, pictures, maps), alt_text)


def fourier_panels(found: Found) -> Iterator[Panel]:
    """The highest frequency of all networks over depth, then the blocks of each network."""
    highest = {model: np.array([layer['relative_F'][-1] for layer in of.values()]) for model, of in found.items()}
    what = 'Relative log amplitude of the highest frequency'
    yield depth_panel('highest frequency', 'Δ log amplitude', highest, what)
    spectra = {
        model: {name: (of['frequency_F'], of['relative_F']) for name, of in layers.items() if 'middle' not in name}
        for model, layers in found.items()
    }
    yield from layer_panels(spectra, ('frequency / π', 'Δ log amplitude'), 'Fourier spectra')


def variance_panels(found: Found) -> Iterator[Panel]:
    values = {model: np.array(list(layers.values())) for model, layers in found.items()}
    yield depth_panel('variance over the grid', 'variance', values, 'Variance of the feature maps', log=True)


def token_panels(found: Found) -> Iterator[Panel]:
    """One figure per network, as the flavour defines the spectrum."""
    layers = {model: of['layers'] for model, of in found.items()}
    if next(iter(found.values()))['flavour'] == 'cl-vs-mim':
        return spectrum_panels(layers)
    return layer_panels(by_rank(layers), ('k', 'share of the first k'), 'Shares of the largest singular values')


def spectrum_panels(found: Found) -> Iterator[Panel]:
    """One figure per network: log singular values by rank."""
    values = {model: {name: of['relative_R'] for name, of in layers.items()} for model, layers in found.items()}
    return layer_panels(by_rank(values), ('rank', 'Δ log singular value'), 'Log singular values')


def by_rank(values: Found) -> dict[str, dict[str, tuple[Any, Any]]]:
    """Model → layer → ranks from 1, values."""
    return {model: {name: (range(1, 1 + len(y)), y) for name, y in of.items()} for model, of in values.items()}


def layer_panels(
    spectra: Mapping[str, Mapping[str, tuple[Any, Any]]], labels: tuple[str, str], title: str
) -> Iterator[Panel]:
    """One figure per network with one line per layer, all on the scale of the blocks (the input may leave it)."""
    curves = {model: [(np.array(x, float), np.array(y)) for x, y in of.values()] for model, of in spectra.items()}
    limits = common_limits([y for layers in curves.values() for _, y in layers[1:]])
    for model, layers in curves.items():
        last = layers[-1][1]
        alt_text = (
            f'{title} of {len(layers)} layers of {model}; the last one goes from {last[0]:.3g} to {last[-1]:.3g}.'
        )
        yield Panel(figures.layers_figure(model, labels, layers, limits), alt_text)


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
        alt_text = (
            f'CKA of {len(rows)} layers of {first} with {len(columns)} layers of {second}; '
            f'{values[-1, -1]:.2f} between the last two.'
        )
        yield Panel(figures.heat_figure(title, (first, rows), (second, columns), values), alt_text)


def hessian_panels(found: Found) -> Iterator[Panel]:
    curves = {model: (np.array(of['curve']['at']), np.array(of['curve']['density'])) for model, of in found.items()}
    largest = ', '.join(f'{model} {max(of["eigenvalues"]):.3g}' for model, of in found.items())
    alt_text = f'Densities of the eigenvalues of the Hessian; the largest: {largest}.'
    yield Panel(figures.density_figure(curves), alt_text)


def landscape_panels(found: Found) -> Iterator[Panel]:
    """One surface per network, all on the same scale."""
    surfaces = {model: np.array(of['losses'], dtype=np.float64) for model, of in found.items()}
    middle = {model: losses[len(losses) // 2, len(losses) // 2] for model, losses in surfaces.items()}
    highest = {model: np.nanmax(losses) for model, losses in surfaces.items()}
    top = min(max(CUT * max(middle.values()), 1.5 * min(highest.values())), max(highest.values()))
    for model, losses in surfaces.items():
        figure = figures.surface_figure(model, np.array(found[model]['steps']), losses, (0.0, float(top)))
        ends = f'{middle[model]:.3g} in the middle, at most {highest[model]:.3g} around it'
        yield Panel(figure, f'Loss landscape of {model}: {ends}.')
