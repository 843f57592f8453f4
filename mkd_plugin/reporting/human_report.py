"""Fine-tuned classifiers beside people on model-vs-human's data sets: jobs, a table and a picture.

Finished data sets are kept under ``OUT/jobs``: rerun the same command to resume it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from mmengine.config import Config
from rich.console import Console

from mkd_plugin.analysis.decisions import coarse_decisions
from mkd_plugin.evaluation import humans
from mkd_plugin.evaluation.classifier import SIXTEEN, load_classifier, logits_of
from mkd_plugin.evaluation.images import LabelledImages
from mkd_plugin.reporting.evaluation_table import short_names
from mkd_plugin.reporting.experiment import Job, JobContext, run_jobs
from mkd_plugin.reporting.figures import MODELS, panel
from mkd_plugin.reporting.store import Store, key_of
from mkd_plugin.utils.files import atomic_write, plain, sha256_of, write_whole
from mkd_plugin.version import __version__

KAPPA = humans.MEASURES[0]
NOTE = """All measures as the benchmark of model-vs-human has them: over the conditions that count (`all`), then over people or
pairs of people, then over the data sets that are here. Accuracy is over the images of these conditions."""


@dataclass(frozen=True)
class HumanPlan:
    """What to compare classifiers with people on, and how."""

    images: Path  #: folder of some of the 17 data sets
    answers: Path  #: folder of what people answered: raw-data of model-vs-human
    size: int = 224  #: side of the images, pixels
    batch_size: int = 64  #: images per forward pass
    workers: int = 0  #: processes that read images
    device: str = 'cpu'

    def open(self) -> dict[str, tuple[LabelledImages, list[humans.Stimulus], humans.Answers]]:
        """Read the layout of each data set. Raises ValueError if there is none, or one has another layout."""
        names = [name for name in humans.HUMAN_SETS if (self.images / name).is_dir()]
        if not names:
            raise ValueError(f'{self.images} has no folder of a data set: {", ".join(humans.HUMAN_SETS)}.')
        answers = {name: humans.read_answers(self.answers, name) for name in names}
        stimuli = {name: humans.open_stimuli(self.images, name, answers[name], size=self.size) for name in names}
        return {name: (*stimuli[name], answers[name]) for name in names}

    def measure(self, name: str, opened: tuple[Any, ...], config: str, path: str, context: JobContext) -> Any:
        """Compare a checkpoint with people on one data set."""
        images, stimuli, answers = opened
        model = load_classifier(config, path).to(self.device)
        options: dict[str, Any] = dict(batch_size=self.batch_size, workers=self.workers, report=context.report)
        decided: dict[humans.Stimulus, str] = {}
        for rows, logits_BC in logits_of(model, images, **options):
            decided.update(zip(stimuli[rows], coarse_decisions(logits_BC, SIXTEEN), strict=True))
        return humans.compare_set(decided, answers, humans.HUMAN_SETS[name])


@dataclass
class HumanReport:
    """Results of several classifiers."""

    settings: Mapping[str, Any]  #: arguments of the comparison
    sets: dict[str, dict[str, Any]] = field(default_factory=dict)  #: data set → classifier → ``compare_set``
    failures: list[str] = field(default_factory=list)

    def means(self) -> dict[str, Any]:
        """Average over the data sets on which each classifier was measured."""
        names = dict.fromkeys(name for found in self.sets.values() for name in found)
        return {
            name: humans.mean_over_sets([found[name] for found in self.sets.values() if name in found])
            for name in names
        }

    def lines(self, *, conditions: bool) -> Iterator[list[str]]:
        """Yield the cells of each line; people come before the classifiers."""
        for title, found in self.sets.items():
            parts = {'all': {of: result['summary'] for of, result in found.items()}}
            for name in next(iter(found.values()))['conditions'] if conditions else ():
                parts[name] = {of: result['conditions'][name] for of, result in found.items()}
            for name, here in parts.items():
                first = next(iter(here.values()))
                place = [title, name if first['counts'] else f'{name} (left out)', str(first['images'])]
                yield [*place, 'people', *cells(first['people'])]
                yield from ([*place, of, *cells(part['classifier'])] for of, part in here.items())
        for of, mean in self.means().items():
            yield ['mean', '', '', of, *cells(mean['classifier'])]
            yield ['mean', '', '', f'people, beside {of}', *cells(mean['people'])]

    def markdown(self, *, conditions: bool = False) -> str:
        head = ['data set', 'condition', 'images', 'observer', 'accuracy, per cent', *humans.MEASURES[:2]]
        rows = [head, ['---'] * len(head), *self.lines(conditions=conditions)]
        return '\n'.join(f'| {" | ".join(row)} |' for row in rows) + '\n'

    def figure(self) -> Figure:
        """Draw κ on each data set: a band from the least to the most consistent pair of people, and the classifiers."""
        figure, axis = panel('error consistency with people', '', "Cohen's κ")
        figure.set_size_inches(4 + 0.4 * len(self.sets), 4.2)
        names = list(self.means())
        for place, found in enumerate(self.sets.values()):
            people = next(iter(found.values()))['summary']['people']
            low, high = limits(people)
            axis.bar(place, high - low, 0.9, low, color='0.85', label='' if place else 'pairs of people')
            axis.hlines(people[KAPPA], place - 0.45, place + 0.45, color='0.4', label='' if place else 'their mean')
            for of, result in found.items():
                part, number = result['summary']['classifier'], names.index(of)
                at, colour = place + 0.12 * (number - (len(names) - 1) / 2), MODELS(number % 10)
                axis.vlines(at, *limits(part), color=colour, lw=1)
                axis.plot(at, part[KAPPA], 'o', ms=4, color=colour)
        for number, name in enumerate(names):
            axis.plot([], [], 'o', ms=4, color=MODELS(number % 10), label=name)
        axis.set_xticks(range(len(self.sets)), list(self.sets), rotation=60, ha='right')
        axis.set_xlim(-0.6, len(self.sets) - 0.4)
        axis.legend(fontsize='small', loc='upper left', bbox_to_anchor=(1, 1))
        return figure

    def write(self, folder: Path) -> None:
        """Write ``humans.json``, ``humans.md`` and, if there is a result, ``humans.png``."""
        found = dict(settings=self.settings, mean=self.means(), sets=self.sets, failures=self.failures)
        write_whole(folder / 'humans.json', json.dumps(plain(found), indent=1, ensure_ascii=False, default=str) + '\n')
        failed = ''.join(f'- {" ".join(failure.split())}\n' for failure in self.failures)
        write_whole(folder / 'humans.md', f'{NOTE}\n\n{self.markdown(conditions=True)}\n{failed}')
        if self.sets:
            with atomic_write(folder / 'humans.png', 'wb') as file:
                self.figure().savefig(file, dpi=120, format='png')


def limits(part: Mapping[str, Any]) -> tuple[float, float]:
    """The least and the largest κ of pairs of observers."""
    kappas = [pair[KAPPA] for pair in part['pairs'].values()]
    return min(kappas), max(kappas)


def cells(part: Mapping[str, Any]) -> list[str]:
    """Format accuracy, κ with its range over people, and observed consistency."""
    spread = ' ({:.3f} … {:.3f})'.format(*limits(part)) if 'pairs' in part else ''
    return [f'{100 * part["accuracy"]:.1f}', f'{part[KAPPA]:.3f}{spread}', f'{part[humans.MEASURES[1]]:.3f}']


def compare_with_people(
    config: str, checkpoints: Sequence[str], plan: HumanPlan, out: Path, *, console: Console | None = None
) -> HumanReport:
    """Compare checkpoints of a fine-tuning config with people, and write the report to ``out``.

    Raises ValueError if a data set or the answers have another layout, or ``out`` is not writable.
    """
    opened = plan.open()
    report = HumanReport(dict(config=config, checkpoints=list(checkpoints), **asdict(plan)))
    network = Config.fromfile(config).to_dict()
    jobs, places = [], {}
    for name, path in zip(short_names(checkpoints), checkpoints, strict=True):
        source = dict(version=__version__, config=network, checkpoint=sha256_of(Path(path)))
        for title, data in opened.items():
            answers = [(who, sorted(said.items())) for who, said in data[2].items()]
            key = key_of(f'humans {title}', **source, images=data[0].identity(), answers=answers)
            jobs.append(Job(f'{title}, {name}', key, partial(plan.measure, title, data, config, path)))
            places[key] = title, name
    outcome = run_jobs(jobs, Store(out / 'jobs'), console=console or Console(stderr=True))
    for key, (title, name) in places.items():
        if key in outcome.failures:
            report.failures.append(f'{name}, {title}: {outcome.failures[key].reason}')
        else:
            report.sets.setdefault(title, {})[name] = outcome.records[key].value
    report.write(out)
    return report
