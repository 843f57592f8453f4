"""The page of a benchmark: scores and differences, learning curves, and predictions on validation images."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from PIL import Image

from mkd_plugin.engine.checkpoints import newest_checkpoint
from mkd_plugin.reporting.benchmark.jobs import Training, Trainings
from mkd_plugin.reporting.figures import learning_curves_figure
from mkd_plugin.reporting.page import Document, Panel, Picture, Section, Table, listed, render, texts, without_folders
from mkd_plugin.utils.configs import config_root

Report = Mapping[str, Any]
Drawings = Mapping[Training, list[dict[str, Path]]]  # for each validation image: 'image', 'truth', 'predicted' → file
DRAWN = ('detection', 'segmentation')
KINDS = ('image', 'truth', 'predicted')  # files per validation image
QUALITY = 80  # of WebP


def draw(trainings: Trainings, planned: Sequence[Training]) -> tuple[Drawings, dict[str, str]]:
    """Draw the first seed of every start, unless the files exist; also return training → why it could not be drawn."""
    found, missing = {}, {}
    for training in planned:
        if training.task in DRAWN and training.seed == 0 and trainings.settings.pictures and trainings.record(training):
            try:
                found[training] = draw_training(trainings, training)
            except ValueError as error:
                missing[str(training)] = str(error)
    return found, missing


def draw_training(trainings: Trainings, training: Training) -> list[dict[str, Path]]:
    """Draw one training. Raises ValueError if it left no checkpoint."""
    from mkd_plugin.reporting.pictures import draw_predictions  # mmdet and mmseg are slow to import

    folder, count = trainings.work_dir(training) / 'pictures', trainings.settings.pictures
    names = [{kind: folder / f'{number}-{kind}.webp' for kind in KINDS} for number in range(count)]
    complete = folder / f'of-{count}'  # another count selects other images
    if not complete.is_file():
        checkpoint = newest_checkpoint(trainings.work_dir(training))
        if checkpoint is None:
            raise ValueError('the config keeps no checkpoint to draw with')
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():  # messages of the hosts
            warnings.simplefilter('ignore')
            drawn = list(draw_predictions(trainings.config(training), checkpoint, count))
        for files, images in zip(names, drawn, strict=False):
            for kind, image_HW3 in zip(KINDS, images, strict=True):
                Image.fromarray(image_HW3).save(files[kind], quality=QUALITY)
        complete.touch()
    return [files for files in names if files['predicted'].is_file()]


def benchmark_document(report: Report, drawn: Drawings, out: Path) -> Document:
    """The whole page; ``report`` is the result of ``collect``, and paths on the page are relative to ``out``."""
    roots = [config_root().parent, out.resolve(), Path.cwd()]
    against = report['settings']['against']
    starts = [start for start in report['starts'] if start != against]
    title = f'Fine-tuning benchmark: {listed(starts, "checkpoints")}' + (f' against {against}' if against else '')
    trained = [task for task, about in report['tasks'].items() if about['scores']]
    seeds = counted(report['settings']['seeds'], 'fine-tuning seed')
    lead = texts('benchmark')['lead'].format(tasks=listed(trained, 'tasks') if trained else 'no task', seeds=seeds)
    settings = Section(
        'Trainings and settings',
        body=render('benchmark_settings.html.j2', report=report, roots=roots),
        notes={'All numbers:': 'report.json, next to this page, with every seed and all curves.'},
    )
    sections = [*task_sections(report, drawn), settings]
    return Document(title, lead, findings(report), answer_section(report, roots), sections)


def counted(number: int, noun: str) -> str:
    """A number of things: '1 seed', '3 seeds'."""
    return f'{number} {noun}{"s" if number > 1 else ""}'


def cell(found: Mapping[str, Any] | None, *, sign: str = '') -> str:
    """Mean ± standard deviation."""
    if not found:
        return '–'
    spread = '' if found['std'] is None else f' ± {found["std"]:.1f}'
    return f'{found["mean"]:{sign}.1f}{spread}'.replace('-', '−')


def findings(report: Report) -> dict[str, str]:
    """Start → how it compares with the reference in the first metric of every task."""
    against = report['settings']['against']
    sentences: dict[str, list[str]] = {}
    for task, about in report['tasks'].items():
        for label in about['metrics'][:1]:
            for start, found in about['scores'].get(label, {}).items():
                if found['difference']:
                    sentences.setdefault(start, []).append(f'{task}: {compared(found["difference"], label)}')
    return {f'{start} against {against}:': f'{"; ".join(parts)}.' for start, parts in sentences.items()}


def compared(paired: Mapping[str, Any], label: str) -> str:
    if abs(paired['mean']) < 0.05:
        return f'{label} is the same'
    word = 'higher' if paired['mean'] > 0 else 'lower'
    seeds = len(paired['seeds'])
    times = paired['better'] if paired['mean'] > 0 else sum(value < 0 for value in paired['seeds'].values())
    return f'{label} is {word} by {cell({**paired, "mean": abs(paired["mean"])})} points ({word} in {times} of {seeds} seeds)'


def answer_section(report: Report, roots: Sequence[Path]) -> Section:
    """Scores and differences, and what is missing from them."""
    against, text = report['settings']['against'], texts('benchmark')
    labels = [(task, label) for task, about in report['tasks'].items() for label in about['scores']]
    heads = [f'{task}: {label}' for task, label in labels]

    def of(start: str, task: str, label: str) -> Any:
        return report['tasks'][task]['scores'][label].get(start)

    def difference(found: Mapping[str, Any] | None) -> str:
        paired = found and found['difference']
        return f'{cell(paired, sign="+")} ({paired["better"]} of {len(paired["seeds"])})' if paired else '–'

    caption = text['scores'].format(seeds=counted(report['settings']['seeds'], 'seed'))
    rows = [[start, *(cell(of(start, *name)) for name in labels)] for start in report['starts']]
    tables = [Table(['start', *heads], rows, caption)]
    others = [start for start in report['starts'] if start != against]
    if against and others:
        rows = [[start, *(difference(of(start, *name)) for name in labels)] for start in others]
        tables.append(Table([f'minus {against}', *heads], rows, text['differences'].format(against=against)))
    missing = {name: without_folders(why, roots) for name, why in missing_of(report)}
    return Section('In brief', tables=tables if labels else (), missing=missing)


def missing_of(report: Report) -> Iterator[tuple[str, str]]:
    """What is not in the tables, and why."""
    for task, about in report['tasks'].items():
        if about['skipped']:
            yield task, f'was skipped: {about["skipped"]}'
    for job in report['jobs']:
        name, failed = f'{job["task"]} from {job["start"]}, seed {job["seed"]}', job['failed']
        if failed:
            yield name, '\n'.join([f'failed: {failed["reason"]}', failed['log'], *failed['lines']])
        elif 'scores' not in job:
            yield name, 'is not finished. Rerun to resume it.'
    for name, reason in report['undrawn'].items():
        yield name, f'has no pictures: {reason}'


def task_sections(report: Report, drawn: Drawings) -> Iterator[Section]:
    """Learning curves and predictions of every task."""
    for task in report['tasks']:
        text = texts('benchmark')
        about, group = text['tasks'][task], text['tasks'][task]['group']
        if panels := list(curve_panels(report, task)):
            reading = f'{about["scores"]} {text["curves"]}'
            yield Section(f'{group}: learning curves', group, reading, panels=panels)
        if found := {training.start: files for training, files in drawn.items() if training.task == task}:
            reading = f'{text["predictions"]} {about["predictions"]}'
            yield Section(f'{group}: predictions', group, reading, pictures=list(picture_rows(found)))


def curve_panels(report: Report, task: str) -> Iterator[Panel]:
    """One figure per metric of a task, and one for the training loss, if there is more than one point."""
    jobs = [job for job in report['jobs'] if job['task'] == task]
    for curve in (*report['tasks'][task]['metrics'], 'loss'):
        if not any(len(job['curves'][curve]) > 1 for job in jobs):
            continue
        by_start = {
            start: [job['curves'][curve] for job in jobs if job['start'] == start and job['curves'][curve]]
            for start in report['starts']
        }
        curves = {start: seeds for start, seeds in by_start.items() if seeds}
        name, unit = ('training loss', 'loss') if curve == 'loss' else (curve, 'per cent')
        figure, last = learning_curves_figure(name, unit, curves)
        ends = ', '.join(f'{start} {value:.3g}' for start, value in last.items())
        yield Panel(figure, f'{name} over the iterations, mean over seeds at the end: {ends}.')


def picture_rows(drawn: Mapping[str, list[dict[str, Path]]]) -> Iterator[list[Picture]]:
    """One row per validation image: image, annotation, then the prediction of each start."""
    for number, rows in enumerate(zip(*drawn.values(), strict=True), start=1):
        yield [
            Picture(rows[0]['image'], f'image {number}', f'Validation image {number}.'),
            Picture(rows[0]['truth'], 'ground truth', f'Annotation of validation image {number}.'),
            *(
                Picture(
                    files['predicted'],
                    f'from {start}',
                    f'Prediction of the training from {start} on validation image {number}.',
                )
                for start, files in zip(drawn, rows, strict=True)
            ),
        ]
