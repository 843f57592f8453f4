"""Analyze networks: from checkpoints and a folder of images to results, a JSON file and a page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from math import ceil
from pathlib import Path
from typing import Any

from rich.console import Console

from mkd_plugin.analysis import FeatureMapVariance, FourierAmplitude, ImageSpectrum
from mkd_plugin.interop.open_model import OpenedModel, open_models
from mkd_plugin.reporting.analysis.curvature import EIGENVALUES, LANCZOS_STEPS, measure_hessian, measure_landscape
from mkd_plugin.reporting.analysis.measure import (
    ImageSet,
    Probe,
    measure_attention,
    measure_maps,
    measure_similarity,
    measure_token_spectrum,
    measure_tokens,
)
from mkd_plugin.reporting.analysis.sections import analysis_document
from mkd_plugin.reporting.analysis.settings import CURVATURE, MEASUREMENTS, Report, Settings
from mkd_plugin.reporting.experiment import Job, JobContext, run_jobs
from mkd_plugin.reporting.page import write_page
from mkd_plugin.reporting.store import Store, key_of
from mkd_plugin.utils.files import plain, write_whole

LAYOUT = 3  # of a result; raise it when the same settings give other numbers
SMALL = 10_000_000  # parameters up to which curvature is measured by default
TRACE_SAMPLES = 30  # usual number of products, for the progress bar

MEASURES: dict[str, Callable[[Probe], dict[str, Any]]] = {
    'maps': measure_maps,
    'attention': measure_attention,
    'fourier': partial(measure_tokens, make=FourierAmplitude, inside=True),
    'variance': partial(measure_tokens, make=FeatureMapVariance, inside=True),
    'token-spectrum': measure_token_spectrum,
    'image-spectrum': partial(measure_tokens, make=ImageSpectrum),
    'similarity': measure_similarity,
    'hessian': measure_hessian,
    'landscape': measure_landscape,
}


@dataclass(frozen=True)
class Task:
    """A measurement of a network, or of two."""

    measurement: str
    subject: OpenedModel
    other: OpenedModel | None = None

    @property
    def title(self) -> str:
        return self.subject.name if self.other is None else f'{self.subject.name} and {self.other.name}'

    def steps(self, images: ImageSet, settings: Settings) -> int:
        if self.measurement == 'hessian':
            return LANCZOS_STEPS + TRACE_SAMPLES + 20 * EIGENVALUES
        batches = ceil(len(images) / settings.batch)
        return {'maps': 1, 'landscape': settings.landscape_size**2}.get(self.measurement, batches)

    def job(self, images: ImageSet, settings: Settings) -> Job:
        """The task as a job; its key covers networks, images and the settings that it depends on."""
        used = {name: asdict(settings)[name] for name in MEASUREMENTS[self.measurement]}
        identities = [self.subject.identity, *([self.other.identity] if self.other else [])]
        content = dict(layout=LAYOUT, networks=identities, images=images.digest, settings=used)
        steps = self.steps(images, settings)
        return Job(
            name=f'{self.measurement} of {self.title}',
            key=key_of(f'{self.title}-{self.measurement}', measurement=self.measurement, **content),
            run=partial(self.run, images, settings, steps),
            cost=steps,
            group=self.measurement,
        )

    def run(self, images: ImageSet, settings: Settings, steps: int, context: JobContext) -> dict[str, Any]:
        """Measure. Raises ValueError if that is impossible."""
        ticks = count(1)
        probe = Probe(self.subject, images, settings, lambda: context.report(next(ticks) / steps))
        if self.other is not None:
            return measure_similarity(probe, Probe(self.other, images, settings))
        return MEASURES[self.measurement](probe)


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
    """Measure networks on images; write ``report.json`` and ``index.html``. Finished measurements are not repeated.

    Networks are named as in :class:`mkd_plugin.interop.specs.ModelSpec`; ``known`` has options that their files do not
    state, and ``pixels`` names pixel statistics for such files. Each result is saved below ``out`` as soon as it is
    available. Measurements that fail are listed with the reason; they do not stop the others.

    Raises:
        FileNotFoundError: A checkpoint does not exist.
        ValueError: A checkpoint, the folder of images or ``out`` cannot be used. Nothing has been measured then.
    """
    images = ImageSet(data, settings.images)
    subjects = open_models(checkpoints, known=known or {}, device=device, pixels=pixels)
    store = Store(Path(out) / 'jobs')
    about = {'root': str(data), 'images': len(images), 'of': images.available, 'wanted': settings.images}
    report = Report(
        models={subject.name: subject.description for subject in subjects},
        data={**about, 'digest': images.digest, 'files': [str(file.relative_to(images.root)) for file in images.files]},
        settings=asdict(settings),
        results={subject.name: {} for subject in subjects},
    )
    tasks = list(plan(subjects, settings, report))
    jobs = [task.job(images, settings) for task in tasks]
    outcome = run_jobs(jobs, store, console=Console(stderr=True))
    for task, job in zip(tasks, jobs, strict=True):
        if failure := outcome.failures.get(job.key):
            report.failed.setdefault(task.title, {})[task.measurement] = str(failure)
        elif task.other is None:
            report.results[task.title][task.measurement] = outcome.records[job.key].value
        else:
            pair = {'first': task.subject.name, 'second': task.other.name}
            report.pairs.append({**pair, **outcome.records[job.key].value})
    write_whole(Path(out) / 'report.json', json.dumps(plain(asdict(report)), indent=1, allow_nan=False) + '\n')
    write_page(Path(out) / 'index.html', analysis_document(report, images))
    return report


def plan(subjects: Sequence[OpenedModel], settings: Settings, report: Report) -> Iterator[Task]:
    """All tasks; those that are left out are noted in the report."""
    for name in dict.fromkeys(settings.only or MEASUREMENTS):
        for subject in subjects:
            if name in CURVATURE and not settings.only and subject.parameters > SMALL:
                report.left_out.setdefault(subject.name, {})[name] = (
                    f'it takes long for a network of {subject.parameters:,} parameters: request it with --only {name}'
                )
            else:
                yield Task(name, subject)
        if name == 'similarity':
            yield from (Task(name, subjects[0], other) for other in subjects[1:])
