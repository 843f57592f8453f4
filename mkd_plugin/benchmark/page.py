"""The report as a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mkd_plugin.benchmark.figures import task_panels
from mkd_plugin.benchmark.pictures import Pictures, data_uri
from mkd_plugin.reporting.html import Panel, anchor, document, panels, table
from mkd_plugin.utils.files import write_whole

Report = Mapping[str, Any]
SCORES, RUNS = 'Scores', 'Trainings and settings'
CURVES = {
    'classification': 'Classification',
    'detection': 'Detection and instance segmentation',
    'segmentation': 'Semantic segmentation',
}
NOTES = {
    'classification': "Top-1 on the validation images, by mmpretrain's Accuracy.",
    'detection': "AP over IoU 0.50 … 0.95 of boxes and of masks, by mmdet's CocoMetric; 0 where nothing was detected.",
    'segmentation': "Intersection over union and accuracy, mean over classes, by mmseg's IoUMetric.",
}
DRAWN = {
    'detection': "Boxes, masks and classes drawn by mmdet's DetLocalVisualizer. Of predictions, those with a score of at "
    'least 0.3 (the number beside the class, per cent).',
    'segmentation': "The class of every pixel, drawn by mmseg's SegLocalVisualizer.",
}


def write_page(path: Path, report: Report, pictures: Sequence[Pictures]) -> None:
    """Write the page.

    Args:
        path: Where to.
        report: What ``collect`` gave.
        pictures: Of some of the trainings.
    """
    sections = [(SCORES, scores_html(report))]
    for number, task in enumerate(report['tasks']):
        if figures := list(task_panels(report, task)):
            sections.append((CURVES[task], curves_html(f'f{number}', figures, task)))
        drawn = [of for of in pictures if of.job.task == task]
        if drawn:
            sections.append((f'{CURVES[task]}: predictions', pictures_html(task, drawn)))
    sections.append((RUNS, runs_html(report)))
    body = [f'<h2 id="{anchor(title)}">{escape(title)}</h2>\n{html}' for title, html in sections]
    names = ', '.join(report['starts'])
    write_whole(
        path,
        document(f'Benchmark of {names}', f'What a pre-training is worth: {names}', [of[0] for of in sections], body),
    )


def note(text: str) -> str:
    """A sentence under something."""
    return f'<p class="note">{escape(text)}</p>'


def cell(found: Mapping[str, Any] | None, *, sign: str = '') -> str:
    """Mean ± standard deviation."""
    if not found:
        return '–'
    spread = '' if found['std'] is None else f' ± {found["std"]:.1f}'
    return f'{found["mean"]:{sign}.1f}{spread}'


def scores_html(report: Report) -> str:
    """Means and differences; what was left out, failed or could not be drawn."""
    seeds, against = report['settings']['seeds'], report['settings']['against']
    labels = [(task, label) for task, about in report['tasks'].items() for label in about['scores']]

    def of(start: str, task: str, label: str) -> Any:
        return report['tasks'][task]['scores'][label].get(start)

    heads = [f'{task}: {label}' for task, label in labels]
    parts = [
        table(
            [['start', *heads], *([start, *(cell(of(start, *name)) for name in labels)] for start in report['starts'])]
        ),
        note(
            f'Per cent on the validation set after the last iteration, mean ± standard deviation over {seeds} seed(s) of '
            'fine-tuning; the pre-training is one and the same.'
        ),
    ]
    if against:
        others = [start for start in report['starts'] if start != against]
        rows = [[start, *(difference(of(start, *name)) for name in labels)] for start in others]
        parts += [
            table([[f'minus {against}', *heads], *rows]),
            note(
                f'Differences in points, seed by seed to the training from {against} with the same seed: mean ± standard '
                'deviation, and for how many seeds it is above zero.'
            ),
        ]
    return '\n'.join([*parts, *missing_html(report)])


def difference(found: Mapping[str, Any] | None) -> str:
    """A cell of differences."""
    paired = found and found['difference']
    return f'{cell(paired, sign="+")} ({paired["better"]} of {len(paired["seeds"])})' if paired else '–'


def missing_html(report: Report) -> Iterator[str]:
    """What is not in the tables, and why."""
    for task, about in report['tasks'].items():
        if about['skipped']:
            yield missing(task, 'was left out', about['skipped'])
    for job in report['jobs']:
        name = f'{job["task"]} from {job["start"]}, seed {job["seed"]}'
        if job['failed']:
            yield missing(
                name, 'failed', '\n'.join([job['failed']['reason'], job['failed']['log'], *job['failed']['lines']])
            )
        elif 'scores' not in job:
            yield missing(name, 'is not finished', 'the same command goes on with it.')
    for name, reason in report['undrawn'].items():
        yield missing(name, 'has no pictures', reason)


def missing(name: str, what: str, why: str) -> str:
    """Something that is not there; of several lines the first is a sentence."""
    reason, _, lines = why.partition('\n')
    rest = f'<pre>{escape(lines)}</pre>' if lines else ''
    return f'<div class="missing"><b>{escape(name)}</b> {what}: {escape(reason)}{rest}</div>'


def curves_html(identity: str, figures: Sequence[Panel], task: str) -> str:
    """The curves of a task."""
    return f'{panels(identity, figures)}\n{note(NOTES[task] + " Thin lines are seeds, the thick one is their mean.")}'


def pictures_html(task: str, drawn: Sequence[Pictures]) -> str:
    """A row for each image: what is annotated, then each start's prediction."""
    rows = []
    for number, truth in enumerate(drawn[0].truth):
        cells = [figure(truth, 'annotated', f'Annotations of validation image {number + 1}.')]
        for of in drawn:
            words = f'What the training from {of.job.start} predicts on validation image {number + 1}.'
            cells.append(figure(of.predicted[number], of.job.start, words))
        rows.append(f'<div class="pictures">{"".join(cells)}</div>')
    return '\n'.join([*rows, note(f'{DRAWN[task]} Trainings of seed 0, after the last iteration.')])


def figure(file: Path, name: str, words: str) -> str:
    """A picture with its name under it."""
    return f'<figure><img src="{data_uri(file)}" alt="{escape(words)}"><figcaption>{escape(name)}</figcaption></figure>'


def configs(about: Mapping[str, Any]) -> str:
    """The config of a task; two if random weights have one of their own."""
    other = f'; from scratch: {about["scratch"]}' if about['scratch'] != about['config'] else ''
    return f'{about["config"]}{other}'


def runs_html(report: Report) -> str:
    """Where it all comes from."""
    settings = report['settings']
    rows = [
        ['setting', 'value'],
        ['command', report['command']],
        ['suite', settings['suite']],
        *([f'config for {task}', configs(about)] for task, about in report['tasks'].items()),
        ['options', ' '.join(settings['options']) or 'none'],
        [
            'software',
            ', '.join([f'mkd_plugin {report["version"]}', *(f'{k} {v}' for k, v in report['software'].items())]),
        ],
        ['time', f'{report["seconds"] / 60:.0f} minutes of training, added up over all trainings'],
    ]
    starts = [
        [name, start['path'] or 'random weights', start['sha256'] or '–'] for name, start in report['starts'].items()
    ]
    jobs = [
        [
            f'{job["task"]}, {job["start"]}, seed {job["seed"]}',
            f'{job["seconds"] / 60:.1f}' if 'seconds' in job else '–',
            job['command'],
        ]
        for job in report['jobs']
    ]
    return '\n'.join(
        [
            table(rows),
            table([['start', 'file', 'sha256'], *starts]),
            table([['training', 'minutes', 'command'], *jobs]),
            note('Every number, also of each seed and of the curves, is in report.json beside this page.'),
        ]
    )
