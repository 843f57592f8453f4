"""From checkpoints and a folder of images to results, a JSON and a page."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mkd_plugin.analysis.report.curvature import EIGENVALUES, LANCZOS_STEPS, measure_hessian, measure_landscape
from mkd_plugin.analysis.report.images import ImageSet
from mkd_plugin.analysis.report.measure import (
    Job,
    compare,
    measure_attention,
    measure_fourier,
    measure_image_spectrum,
    measure_maps,
    measure_token_spectrum,
    measure_variance,
)
from mkd_plugin.analysis.report.page import write_page
from mkd_plugin.analysis.report.result import Report
from mkd_plugin.analysis.report.settings import CURVATURE, MEASUREMENTS, Settings
from mkd_plugin.analysis.report.store import Store
from mkd_plugin.engine.progress import someone_looks
from mkd_plugin.interop.subjects import Subject, load_subjects
from mkd_plugin.utils.files import plain, write_whole

SMALL = 10_000_000  # parameters up to which curvature is measured without being asked for
TRACE_SAMPLES = 30  # usual number of products; only the progress bar depends on it

MEASURES: dict[str, Callable[[Job], dict[str, Any]]] = {
    'maps': measure_maps,
    'attention': measure_attention,
    'fourier': measure_fourier,
    'variance': measure_variance,
    'token-spectrum': measure_token_spectrum,
    'image-spectrum': measure_image_spectrum,
    'similarity': compare,
    'hessian': measure_hessian,
    'landscape': measure_landscape,
}


@dataclass(frozen=True)
class Task:
    """A measurement of a network, or of two."""

    measurement: str
    subject: Subject
    other: Subject | None = None

    @property
    def title(self) -> str:
        """The networks' names."""
        return self.subject.name if self.other is None else f'{self.subject.name} and {self.other.name}'

    def steps(self, images: ImageSet, settings: Settings) -> int:
        """How many ticks to expect."""
        batches = ceil(len(images) / settings.batch)
        if self.measurement == 'hessian':
            return LANCZOS_STEPS + TRACE_SAMPLES + 20 * EIGENVALUES
        return {'maps': 1, 'landscape': settings.landscape_size**2}.get(self.measurement, batches)


def analyze(
    checkpoints: Sequence[str],
    *,
    data: str | Path,
    out: str | Path,
    settings: Settings,
    known: Mapping[str, Any] | None = None,
    pixels: str | None = None,
    device: str = 'cpu',
) -> Report:
    """Measure networks on images; write ``report.json`` and ``index.html``. What an earlier run has measured is not again.

    Args:
        checkpoints: ``[NAME=][NETWORK=]FILE[#PART]`` each; see :class:`mkd_plugin.interop.specs.Request`.
        data: A folder of images.
        out: Where to; a result is written there as soon as it is there.
        settings: What and how.
        known: Options of networks whose files do not state them.
        pixels: Likewise, of pixels: a name in ``mkd_plugin.interop.subjects.PIXELS``.
        device: Where to compute.

    Returns:
        What was measured. What could not be is in it with the reason: it does not stop the rest.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: A checkpoint, the folder of images or ``out`` cannot be used. Nothing has been measured then.
    """
    store = Store(out)
    images = ImageSet(data, settings.images)
    subjects = load_subjects(checkpoints, known=known or {}, device=device, pixels=pixels)
    about = {'root': str(data), 'images': len(images), 'of': images.available, 'wanted': settings.images}
    report = Report(
        models={subject.name: subject.description for subject in subjects},
        data={**about, 'digest': images.digest, 'files': [str(file.relative_to(images.root)) for file in images.files]},
        settings=asdict(settings),
        results={subject.name: {} for subject in subjects},
    )
    run_tasks(list(plan(subjects, settings, report)), report, store, images, settings)
    write_whole(store.folder / 'report.json', json.dumps(plain(asdict(report)), indent=1, allow_nan=False) + '\n')
    write_page(store.folder / 'index.html', report, images)
    return report


def plan(subjects: Sequence[Subject], settings: Settings, report: Report) -> Iterator[Task]:
    """All tasks; what is left out is noted in the report."""
    for name in settings.only or MEASUREMENTS:
        for subject in subjects:
            if name in CURVATURE and not settings.only and subject.parameters > SMALL:
                report.left_out.setdefault(subject.name, {})[name] = (
                    f'it takes long for a network of {subject.parameters:,} parameters: ask for it with --only {name}'
                )
            else:
                yield Task(name, subject)
        if name == 'similarity':
            yield from (Task(name, subjects[0], other) for other in subjects[1:])


def run_tasks(tasks: list[Task], report: Report, store: Store, images: ImageSet, settings: Settings) -> None:
    """Do what is not done yet, and put everything into the report."""
    with progress_of(sum(task.steps(images, settings) for task in tasks)) as show:
        for number, task in enumerate(tasks, start=1):
            identities = [task.subject.identity, *([task.other.identity] if task.other else [])]
            path = store.path(task.title, task.measurement, identities, images, settings)
            result, reason = store.read(path), 'done before'
            show.begin(f'{number}/{len(tasks)} {task.measurement} of {task.title}', task.steps(images, settings))
            if result is None:
                try:
                    result, reason = store.write(path, measure(task, images, settings, show.tick)), 'done'
                except ValueError as error:
                    report.failed.setdefault(task.title, {})[task.measurement] = reason = str(error)
            show.end(reason)
            if result is None:
                continue
            if task.other is None:
                report.results[task.title][task.measurement] = result
            else:
                report.pairs.append({'first': task.subject.name, 'second': task.other.name, **result})


def measure(task: Task, images: ImageSet, settings: Settings, tick: Callable[[], None]) -> dict[str, Any]:
    """The numbers of a task. Raises ValueError if it cannot be measured."""
    job = Job(task.subject, images, settings, tick)
    if task.other is not None:
        return compare(job, Job(task.other, images, settings))
    return MEASURES[task.measurement](job)


class Show:
    """What the user sees of the work: a bar with the time left, or a line for everything that is done."""

    def __init__(self, bar: Progress, total: int) -> None:
        self.bar, self.task = bar, bar.add_task('', total=total)
        self.planned, self.what = 0, ''

    def begin(self, what: str, steps: int) -> None:
        """Something else is measured now."""
        self.planned += steps
        self.left, self.what = steps, what
        self.bar.update(self.task, description=escape(what))

    def tick(self) -> None:
        """A step is done; more than were expected do not count."""
        if self.left > 0:
            self.left -= 1
            self.bar.advance(self.task)

    def end(self, outcome: str) -> None:
        """It is done, or it is known why it cannot be."""
        self.bar.update(self.task, completed=self.planned)
        if outcome != 'done before':
            self.bar.console.print(f'{escape(self.what)}: {escape(outcome)}', highlight=False, soft_wrap=True)


@contextmanager
def progress_of(total: int) -> Iterator[Show]:
    """A bar if someone looks, lines only otherwise."""
    looks = someone_looks(sys.stderr, os.environ)
    columns = [TextColumn('{task.description}'), BarColumn(), TimeRemainingColumn(), TextColumn('left')]
    with Progress(*columns, console=Console(stderr=True), disable=not looks) as bar:
        yield Show(bar, total)
