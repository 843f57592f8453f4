"""Evaluation of several checkpoints as jobs: by protocols on frozen features, or of fine-tuned classifiers on image sets.

Results are kept under ``OUT/jobs``: rerun the same command to resume it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.config import Config
from rich.console import Console
from torch import nn

from mkd_plugin.evaluation.classifier import folder_accuracy, load_classifier, read_classes, shape_bias
from mkd_plugin.evaluation.features import FeatureStore, Report, Split, ignore
from mkd_plugin.evaluation.images import LabelledImages, Preprocessing, open_images
from mkd_plugin.evaluation.protocols import PROTOCOLS, SETTINGS, Data, Plan, Row, compute_features
from mkd_plugin.interop.open_model import OpenedModel, open_model
from mkd_plugin.interop.specs import ModelSpec, parse_specs
from mkd_plugin.reporting.evaluation_table import EvaluationTable, short_names
from mkd_plugin.reporting.experiment import Job, JobContext, run_jobs
from mkd_plugin.reporting.store import Record, Store, key_of
from mkd_plugin.utils.files import sha256_of
from mkd_plugin.version import __version__

FEATURES = 'features'
Measure = Callable[[Report], Iterable[Row]]


@dataclass
class Measurements:
    """Jobs of an evaluation, and the table cell that each belongs to."""

    table: EvaluationTable
    out: Path  #: folder for ``evaluation.json``, ``evaluation.md`` and the finished jobs
    jobs: list[Job] = field(default_factory=list)  #: in the order of the table
    cells: list[tuple[str, str, str]] = field(default_factory=list)  #: column, protocol, key of the job of some rows

    def __post_init__(self) -> None:
        self.store = Store(self.out / 'jobs')

    def add(self, column: str, protocol: str, run: Measure, *, after: str = '', **content: Any) -> str:
        """Add a job and return its key, a digest of ``content``."""
        key = key_of(protocol, version=__version__, **content)
        if all(job.key != key for job in self.jobs):  # a checkpoint may be given under two names
            self.jobs.append(Job(f'{protocol} of {column}', key, partial(rows_of, run), (after,) if after else ()))
        self.cells.append((column, protocol, key))
        return key

    def run(self, console: Console | None = None) -> EvaluationTable:
        """Run what is missing and write the table, also if the run is interrupted."""
        failures: Mapping[str, Any] = {}
        try:
            failures = run_jobs(
                self.jobs, self.store, console=console or Console(stderr=True), describe=describe
            ).failures
        finally:
            self.collect(failures)
            self.table.write(self.out)
        return self.table

    def collect(self, failures: Mapping[str, Any]) -> None:
        """Fill the table with results and failures."""
        dependencies = {job.key: job.dependencies for job in self.jobs}
        for column, protocol, key in self.cells:
            record = self.store.read(key)
            if record:
                rows = [Row(**values) for values in record.value]
                rows = [replace(row, top1=math.nan) if row.top1 is None else row for row in rows]  # JSON has no NaN
                self.table.rows.setdefault(column, []).extend(rows)
            if key in failures and not failures.keys() & set(dependencies[key]):
                self.table.fail(column, protocol, failures[key].reason)


def rows_of(run: Measure, context: JobContext) -> list[dict[str, Any]]:
    """Run a measurement; report an unreadable or unwritable file as the failure of this job only."""
    try:
        return [asdict(row) for row in run(context.report)]
    except OSError as error:
        raise ValueError(str(error)) from error


def describe(record: Record) -> str:
    """Describe a finished job by its best number."""
    found = [row for row in record.value if row['top1'] is not None]
    best = max(found, key=lambda row: row['top1'], default=None)
    return f'{best["top1"]:.1f} % ({best["setting"]}, {best["feature"]})' if best else f'{record.seconds:.1f} s'


class Networks:
    """Loads networks and their features, and keeps only the last one in memory."""

    def __init__(self, load: Callable[[ModelSpec], OpenedModel], data: Data, plan: Plan, store: FeatureStore) -> None:
        self.load, self.data, self.plan, self.store = load, data, plan, store
        self.name = ''
        self.loaded: OpenedModel | None = None
        self.split: Split | None = None

    def subject(self, request: ModelSpec) -> OpenedModel:
        if self.loaded is None or self.name != request.name:
            self.name, self.loaded, self.split = request.name, self.load(request), None
        return self.loaded

    def features(self, request: ModelSpec, report: Report = ignore) -> Split:
        """Compute the features of both splits, or read them from the cache."""
        subject = self.subject(request)
        if self.split is None:
            self.split = compute_features(self.store, subject, self.data, self.plan, report=report)
        return self.split

    def extract(self, request: ModelSpec, report: Report) -> tuple[Row, ...]:
        """Fill the cache of features; there are no rows."""
        self.features(request, report)
        return ()

    def measure(self, protocol: str, request: ModelSpec, report: Report) -> Iterator[Row]:
        """Run a protocol."""
        return PROTOCOLS[protocol](self.features(request), self.plan, report)


def evaluate(
    checkpoints: Sequence[str],
    protocols: Sequence[str],
    data: Data,
    out: Path,
    *,
    plan: Plan,
    store: FeatureStore,
    known: Mapping[str, Any] | None = None,
    pixels: str | None = None,
    console: Console | None = None,
) -> EvaluationTable:
    """Evaluate frozen networks by several protocols. What cannot be measured is listed in the table's failures.

    Networks are named as in :class:`mkd_plugin.interop.specs.ModelSpec`; ``known`` has options that their files do not
    state, and ``pixels`` names pixel statistics for such files. ``out`` gets ``evaluation.json``, ``evaluation.md`` and the
    finished jobs. Raises ValueError for an unknown protocol, two checkpoints of one name, or an output folder that is not
    writable.
    """
    unknown = [name for name in protocols if name not in PROTOCOLS]
    if unknown or not protocols:
        raise ValueError(f'protocols {unknown} are not known: use some of {", ".join(PROTOCOLS)}.')
    if len(set(protocols)) < len(protocols):
        raise ValueError(f'protocols {list(protocols)}: give each of them once.')
    requests = parse_specs(checkpoints)
    Store(store.cache)  # checks that it is writable
    settings = dict(data=asdict(data), plan=asdict(plan), protocols=list(protocols))
    table = EvaluationTable({request.name: dict(source=request.text) for request in requests}, settings)
    measurements = Measurements(table, out)
    networks = Networks(partial(open_model, known=known or {}, device=plan.device, pixels=pixels), data, plan, store)
    for request in requests:
        name = request.name
        try:
            subject = networks.subject(request)
            table.checkpoints[name] = subject.description
            sources: dict[str, Any] = dict(subject=subject.identity, data=[])
            for images in data.open(subject):
                labels = hashlib.sha256(images.labels.numpy().tobytes()).hexdigest()
                sources['data'].append(dict(**images.identity(), labels=labels))
        except (OSError, ValueError) as error:
            table.fail(name, FEATURES, error)
            continue
        sources['features'] = [str(feature) for feature in plan.features]
        first = measurements.add(name, FEATURES, partial(networks.extract, request), **sources)
        for protocol in protocols:
            options = {option: asdict(plan)[option] for option in SETTINGS[protocol]}
            run = partial(networks.measure, protocol, request)
            measurements.add(name, protocol, run, after=first, **sources, options=options)
    return measurements.run(console)


@dataclass(frozen=True)
class ClassifierPlan:
    """What to evaluate fine-tuned classifiers on, and how."""

    folders: Mapping[str, str]  #: name → folder with one folder per class, which are a subset of the training classes
    classes: str | None = None  #: folder of the training images, or a file with a class name per line; for ``folders``
    cue_conflict: str | None = None  #: folder of cue-conflict images
    size: int = 224  #: side of the images, pixels
    batch_size: int = 64  #: images per forward pass
    workers: int = 0  #: processes that read images
    device: str = 'cpu'

    def __post_init__(self) -> None:
        if (self.folders and not self.classes) or not (self.folders or self.cue_conflict):
            raise ValueError(
                'Give --folders NAME=DIR … with --classes, --cue-conflict DIR, or --model-vs-human DIR with --people DIR.'
            )

    def open(self) -> dict[str, Callable[[], LabelledImages]]:
        """Return functions that open the image sets, by name."""
        crop = (self.size, self.size)
        sets: dict[str, Callable[[], LabelledImages]] = {
            name: partial(open_images, folder, Preprocessing.standard(crop)) for name, folder in self.folders.items()
        }
        if self.cue_conflict:  # not resized if they have the right size already
            sets['cue-conflict'] = partial(open_images, self.cue_conflict, Preprocessing(crop, self.size))
        return sets

    def measure(
        self, name: str, images: LabelledImages, load: Callable[[], nn.Module], report: Report
    ) -> Iterator[Row]:
        """Measure a classifier on one set of images."""
        model = load().to(self.device)
        options: dict[str, Any] = dict(batch_size=self.batch_size, workers=self.workers, report=report)
        if name in self.folders:
            assert self.classes is not None
            top1 = folder_accuracy(model, images, read_classes(self.classes), **options)
            note = f'predictions restricted to the {len(images.classes)} classes of {name}'
            yield Row('folder', name, 'classifier', top1, note=note)
            return
        bias = shape_bias(model, images, **options)
        note = f'shape {bias.shape}, texture {bias.texture}, neither {bias.other}, no conflict {bias.dropped}'
        yield Row('cue-conflict', 'shape bias, per cent', 'classifier', 100 * bias.bias, note=note)


def evaluate_classifiers(
    config: str, checkpoints: Sequence[str], plan: ClassifierPlan, out: Path, *, console: Console | None = None
) -> EvaluationTable:
    """Evaluate checkpoints of a fine-tuning config on other images; ``out`` and errors are as for :func:`evaluate`."""
    names = short_names(checkpoints)
    columns = {name: dict(path=path) for name, path in zip(names, checkpoints, strict=True)}
    measurements = Measurements(EvaluationTable(columns, dict(config=config, **asdict(plan))), out)
    for name, path in zip(names, checkpoints, strict=True):
        try:
            load_classifier(config, path)
            source = dict(config=Config.fromfile(config).to_dict(), checkpoint=sha256_of(Path(path)))
        except (OSError, ValueError) as error:
            measurements.table.fail(name, 'loading', error)
            continue
        for title, open_set in plan.open().items():
            try:
                images = open_set()
                classes = read_classes(plan.classes) if plan.classes else None
            except (OSError, ValueError) as error:
                measurements.table.fail(name, title, error)
                continue
            content: dict[str, Any] = dict(
                images=images.identity(), names=[images.names, images.classes], classes=classes
            )
            run = partial(plan.measure, title, images, partial(load_classifier, config, path))
            measurements.add(name, title, run, **source, **content)
    return measurements.run(console)
