"""Decisions of classifiers beside those of people, on the 17 data sets of model-vs-human (Geirhos et al. 2021).

Images and answers are read as they are published (github.com/bethgelab/model-vs-human)::

    IMAGES/colour/dnn/session-1/0001_cl_dnn_bw_oven_40_n04111531_14126.png
    IMAGES/edge/oven/oven10.png                               (also cue-conflict and silhouette)
    ANSWERS/colour/colour_subject-01_session_1.csv

A name is TRIAL_EXPERIMENT_OBSERVER_CONDITION_CLASS_NUMBER_IMAGE; in class folders it is IMAGE only.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import yaml

from mkd_plugin.analysis.decisions import ErrorConsistency
from mkd_plugin.checkpoint.report import shorten
from mkd_plugin.evaluation.classifier import SIXTEEN
from mkd_plugin.evaluation.images import LabelledImages, Preprocessing, open_folder

# Data set → conditions that do not count in the benchmark.
HUMAN_SETS: dict[str, list[str]] = yaml.safe_load(Path(__file__).with_name('human_sets.yml').read_text())
COLUMNS = ('subj', 'object_response', 'category', 'condition', 'imagename')  # in lower case; some files have `Session`
NO_ANSWER = 'na'
MEASURES = ('error consistency', 'observed consistency', 'accuracy difference')
OBSERVERS = ('classifier', 'people')


class Stimulus(NamedTuple):
    """An image that people and classifiers name."""

    condition: str
    category: str
    image: str  #: file name without the fields of a trial


Answers = dict[str, dict[Stimulus, str]]  # person → image → class, or NO_ANSWER


def condition_of(text: str) -> str:
    """Write a condition in one way: the files have 0.10 and 0.1, 3 and 3.0, true and True."""
    try:
        return f'{float(text):g}'
    except ValueError:
        return text.lower()


def parse_stimulus(name: str) -> Stimulus:
    """Read an image's name. Raises ValueError if it has not all seven fields, or another class than the 16."""
    fields = name.split('_', 6)
    if len(fields) < 7 or fields[4] not in SIXTEEN:
        raise ValueError(
            f'{name!r} is not TRIAL_EXPERIMENT_OBSERVER_CONDITION_CLASS_NUMBER_IMAGE with one of the classes '
            f'{", ".join(SIXTEEN)}.'
        )
    return Stimulus(condition_of(fields[3]), fields[4], fields[6])


def read_answers(folder: Path, name: str) -> Answers:
    """Read what each person answered on a data set.

    Raises ValueError if there are not two people, a column is missing, a row has an unknown class or contradicts its image's
    name, or somebody saw an image twice or other images than the first person.
    """
    files = sorted((folder / name).glob(f'{name}_subject-*.csv'))
    if not files:
        raise ValueError(
            f'{folder / name} has no {name}_subject-01_session_1.csv. Give the folder raw-data of model-vs-human.'
        )
    answers: Answers = {}
    for path in files:
        for number, row in enumerate(read_rows(path), 2):
            try:
                add_answer(answers.setdefault(row['subj'], {}), row)
            except ValueError as error:
                raise ValueError(f'{path}, line {number}: {error}') from error
    first, *others = answers
    if not others:
        raise ValueError(f'{folder / name} has answers of {first} only. Two people are needed, to compare them.')
    for other in others:
        check_same_images(f'{folder / name}: {other} and {first}', answers[other], answers[first])
    return answers


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a table with :data:`COLUMNS`. Raises ValueError if it is none."""
    try:
        reader = csv.DictReader(path.read_text(encoding='utf-8', errors='replace').splitlines())
        reader.fieldnames = [column.lower() for column in reader.fieldnames or ()]
        rows = list(reader)
    except csv.Error as error:
        raise ValueError(f'{path} is not a CSV file ({error}).') from error
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
    if missing or not rows:
        raise ValueError(f'{path} has no {f"column {shorten(missing)}" if missing else "rows"}.')
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise ValueError(f'{path}, line {number}: {len(reader.fieldnames or ())} values are expected.')
    return rows


def add_answer(seen: dict[Stimulus, str], row: Mapping[str, str]) -> None:
    """Add a row to the answers of its person."""
    stimulus = parse_stimulus(row['imagename'])
    said = Stimulus(condition_of(row['condition']), row['category'], stimulus.image)
    answer = row['object_response'].lower()
    if said != stimulus:
        raise ValueError(
            f'condition {row["condition"]!r} and category {row["category"]!r} are not those of {row["imagename"]!r}.'
        )
    if answer not in (*SIXTEEN, NO_ANSWER):
        raise ValueError(
            f'object_response {answer!r} is neither {NO_ANSWER!r} nor one of the classes {", ".join(SIXTEEN)}.'
        )
    if stimulus in seen:
        raise ValueError(f'{row["subj"]} has seen {stimulus.image} before.')
    seen[stimulus] = answer


def check_same_images(where: str, first: Iterable[Stimulus], second: Iterable[Stimulus]) -> None:
    """Raise ValueError unless both have the same images."""
    names = [['/'.join(stimulus) for stimulus in sorted(side)] for side in (first, second)]
    (more, fewer) = (sorted(set(one) - set(other)) for one, other in (names, names[::-1]))
    if more or fewer:
        raise ValueError(
            f'{where} have different images (condition/class/image): only the first has {shorten(more, 2) or "none"}, only '
            f'the second {shorten(fewer, 2) or "none"}; {len(set(names[0]) & set(names[1]))} are in both.'
        )


def open_stimuli(
    folder: Path, name: str, answers: Answers, *, size: int = 224
) -> tuple[LabelledImages, list[Stimulus]]:
    """Find the images of a data set and what they show; images with a short edge of ``size`` pixels are not resized.

    Raises ValueError if a name or a class folder is unknown, an image is there twice, or people saw other images.
    """
    root = folder / name
    sessions = (root / 'dnn').is_dir()
    images = open_folder(root / 'dnn' if sessions else root, Preprocessing((size, size), size))
    stimuli = []
    for path in map(Path, images.names):
        category = path.parent.name
        if not sessions and category not in SIXTEEN:
            raise ValueError(f'{root / path.parent} is not a folder of one of the classes {", ".join(SIXTEEN)}.')
        try:
            stimuli.append(parse_stimulus(path.name) if sessions else Stimulus('0', category, path.name))
        except ValueError as error:
            raise ValueError(f'{images.folder / path.parent}: {error}') from error
    twice = sorted({stimulus.image for stimulus in stimuli if stimuli.count(stimulus) > 1})
    if twice:
        raise ValueError(f'{images.folder} has {shorten(twice)} twice. Keep one of each.')
    check_same_images(f'{root} and the people of {name}', stimuli, next(iter(answers.values())))
    return images, stimuli


def agreement(first: Sequence[bool], second: Sequence[bool]) -> dict[str, float]:
    """Compare where two observers are right, by the measures of model-vs-human.

    Error consistency is Cohen's κ, and 1 where both are always right or always wrong together; the difference of accuracies
    is squared.
    """
    consistency = ErrorConsistency()
    consistency.update(first, second)
    observed = consistency.observed()
    kappa = 1.0 if observed == 1 else consistency.result()
    return dict(zip(MEASURES, (kappa, observed, (fmean(first) - fmean(second)) ** 2), strict=True))


def with_means(accuracy: float, pairs: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Add the accuracy, and the means over pairs of observers."""
    means = {measure: fmean(pair[measure] for pair in pairs.values()) for measure in MEASURES}
    return dict(accuracy=accuracy, **means, pairs=pairs)


def compare_set(decided: Mapping[Stimulus, str], answers: Answers, left_out: Sequence[str] = ()) -> dict[str, Any]:
    """Compare a classifier's decisions with people's, in each condition and over those that are not left out.

    Each part has an entry for ``classifier`` (compared with each person) and ``people`` (with each other). An image without
    an answer counts as named wrongly. The summary is that of model-vs-human: accuracy over all images, of the other measures
    the mean over conditions, then over people or pairs of them. Raises ValueError if nothing is left.
    """
    conditions: dict[str, dict[str, Any]] = {}
    for condition in sorted({stimulus.condition for stimulus in decided}):
        stimuli = [stimulus for stimulus in decided if stimulus.condition == condition]
        right = [decided[stimulus] == stimulus.category for stimulus in stimuli]
        people = {name: [said[each] == each.category for each in stimuli] for name, said in sorted(answers.items())}
        pairs = {f'{one}, {other}': agreement(people[one], people[other]) for one, other in combinations(people, 2)}
        conditions[condition] = {
            'images': len(stimuli),
            'counts': condition not in left_out,
            'classifier': with_means(fmean(right), {name: agreement(right, people[name]) for name in people}),
            'people': with_means(fmean(map(fmean, people.values())), pairs),
        }
    counted = [found for found in conditions.values() if found['counts']]
    if not counted:
        raise ValueError(f'There are images of {", ".join(conditions)} only, which the benchmark leaves out.')
    summary: dict[str, Any] = dict(images=sum(found['images'] for found in counted), counts=True)
    for of in OBSERVERS:
        accuracy = sum(found['images'] * found[of]['accuracy'] for found in counted) / summary['images']
        pairs = {
            pair: {measure: fmean(found[of]['pairs'][pair][measure] for found in counted) for measure in MEASURES}
            for pair in counted[0][of]['pairs']
        }
        summary[of] = with_means(accuracy, pairs)
    return {'summary': summary, 'conditions': conditions}


def mean_over_sets(sets: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Average the summaries of data sets, each with the same weight: the figures of the published benchmark."""
    return {
        of: {measure: fmean(found['summary'][of][measure] for found in sets) for measure in ('accuracy', *MEASURES)}
        for of in OBSERVERS
    }
