"""model-vs-human: its layout, its measures and its summary, against scikit-learn's kappa and plain means."""

from __future__ import annotations

import shutil
from itertools import combinations
from statistics import fmean

import numpy as np
import pytest
from helpers.human_files import CLASSES, SETS, write_sets
from sklearn.metrics import cohen_kappa_score

from mkd_plugin.evaluation.classifier import SIXTEEN
from mkd_plugin.evaluation.humans import (
    HUMAN_SETS,
    Stimulus,
    agreement,
    compare_set,
    condition_of,
    mean_over_sets,
    open_stimuli,
    parse_stimulus,
    read_answers,
)


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    return write_sets(tmp_path_factory.mktemp('published'))


@pytest.fixture
def own(published, tmp_path):
    """A copy to damage."""
    return [shutil.copytree(folder, tmp_path / folder.name) for folder in published]


def test_human_sets__the_17_of_the_benchmark():
    assert len(HUMAN_SETS) == 17 and sum(map(len, HUMAN_SETS.values())) == 32
    assert all(condition_of(condition) == condition for left_out in HUMAN_SETS.values() for condition in left_out)
    assert tuple(SIXTEEN) == CLASSES


@pytest.mark.parametrize(
    ('name', 'wanted'),
    [
        ('0001_cl_dnn_bw_oven_40_n04111531_14126.png', ('bw', 'oven', 'n04111531_14126.png')),
        ('0002_eid_s01_16-10-10_boat_10_n02690373_4183.png', ('16-10-10', 'boat', 'n02690373_4183.png')),
        ('0571_nse_dnn_0.00_bicycle_10_n03792782_1418.png', ('0', 'bicycle', 'n03792782_1418.png')),
        ('0001_hp_s01_3_car_10_n1_2.png', ('3', 'car', 'n1_2.png')),
        ('0001_hp_s01_3.0_car_10_n1_2.png', ('3', 'car', 'n1_2.png')),
        ('0001_hp_s01_inf_car_10_n1_2.png', ('inf', 'car', 'n1_2.png')),
        ('0001_fc_s01_True_car_35_n1_2.png', ('true', 'car', 'n1_2.png')),
        ('0001_s5n_s01_0_bird_00_bird3-bird2.png', ('0', 'bird', 'bird3-bird2.png')),
        ('0001_sty_dnn_0_bear_00_bear-0001-ILSVRC2012-val-01.png', ('0', 'bear', 'bear-0001-ILSVRC2012-val-01.png')),
    ],
)
def test_parse_stimulus__names_of_the_published_files(name, wanted):
    assert parse_stimulus(name) == wanted


@pytest.mark.parametrize(
    'name', ['oven10.png', '0001_cl_dnn_bw_oven_n04111531.png', '0001_cl_dnn_bw_stove_40_n1_2.png']
)
def test_parse_stimulus__other_names(name):
    with pytest.raises(ValueError, match=f"'{name}' is not TRIAL_EXPERIMENT_OBSERVER_CONDITION_CLASS_NUMBER_IMAGE"):
        parse_stimulus(name)


@pytest.mark.parametrize('name', SETS)
def test_open_stimuli__same_images_as_people(published, name):
    answers = read_answers(published[1], name)
    images, stimuli = open_stimuli(published[0], name, answers, size=24)
    assert list(answers) == ['subject-01', 'subject-02', 'subject-03']
    assert len(images) == len(stimuli) == 16 * len(SETS[name][2])
    for path, stimulus in zip(images.names, stimuli, strict=True):
        assert path.endswith(stimulus.image) and stimulus.category in path
        assert name == 'edge' or f'_{stimulus.category}_' in path
    assert {stimulus.condition for stimulus in stimuli} == {
        f'{c}' if name == 'colour' else f'{float(c):g}' for c in SETS[name][2]
    }
    said = [answer for seen in answers.values() for answer in seen.values()]
    assert 'na' in said and set(said) <= {*CLASSES, 'na'}


def by_hand(decided, answers, conditions):
    """Kappa by scikit-learn of each person or pair and condition, then plain means."""

    def right(said, condition):
        return np.array([said[each] == each.category for each in sorted(decided) if each.condition == condition])

    def over(pairs):
        table = [[(right(a, c), right(b, c)) for c in conditions] for a, b in pairs]
        kappas = [[cohen_kappa_score(*pair) for pair in row] for row in table]
        observed = [[(a == b).mean() for a, b in row] for row in table]
        difference = [[(a.mean() - b.mean()) ** 2 for a, b in row] for row in table]
        return {
            'error consistency': np.mean(kappas),
            'observed consistency': np.mean(observed),
            'accuracy difference': np.mean(difference),
            'accuracy': np.concatenate([right(pairs[0][0], c) for c in conditions]).mean(),
        }

    people = list(answers.values())
    classifier, between = over([(decided, person) for person in people]), over(list(combinations(people, 2)))
    between['accuracy'] = np.mean([np.concatenate([right(person, c) for c in conditions]).mean() for person in people])
    return dict(classifier=classifier, people=between)


def guesses(stimuli, seed):
    draw = np.random.default_rng(seed)
    return {s: s.category if draw.random() < 0.5 else str(draw.choice(CLASSES)) for s in stimuli}


@pytest.mark.parametrize('name', SETS)
def test_compare_set__equals_scikit_learns_kappa(published, name):
    answers = read_answers(published[1], name)
    decided = guesses(answers['subject-01'], 3)
    left_out = HUMAN_SETS[name]
    found = compare_set(decided, answers, left_out)
    every = {stimulus.condition for stimulus in decided}
    for condition in every:
        wanted = by_hand(decided, answers, [condition])
        part = found['conditions'][condition]
        assert part['images'] == 16 and part['counts'] == (condition not in left_out)
        for of, values in wanted.items():
            assert {key: part[of][key] for key in values} == pytest.approx(values, rel=1e-12)
    wanted = by_hand(decided, answers, sorted(every - set(left_out)))
    for of, values in wanted.items():
        assert {key: found['summary'][of][key] for key in values} == pytest.approx(values, rel=1e-12)
    person = found['conditions'][sorted(every)[0]]['classifier']['pairs']['subject-02']
    pairs = [(s, decided[s] == s.category, answers['subject-02'][s] == s.category) for s in decided]
    mine, theirs = zip(*[(a, b) for s, a, b in pairs if s.condition == sorted(every)[0]], strict=True)
    assert person['error consistency'] == pytest.approx(cohen_kappa_score(mine, theirs), rel=1e-12)
    assert len(found['summary']['people']['pairs']) == 3


def test_mean_over_sets__every_set_weighs_the_same(published):
    sets = []
    for name in SETS:
        answers = read_answers(published[1], name)
        sets.append(compare_set(guesses(answers['subject-01'], 4), answers, HUMAN_SETS[name]))
    mean = mean_over_sets(sets)
    for of in ('classifier', 'people'):
        for measure, value in mean[of].items():
            assert value == pytest.approx(fmean(found['summary'][of][measure] for found in sets))


def test_compare_set__no_answer_is_wrong():
    stimuli = [Stimulus('0', 'cat', f'{number}.png') for number in range(4)]
    answers = {'a': dict.fromkeys(stimuli, 'na'), 'b': dict.fromkeys(stimuli, 'cat')}
    found = compare_set(dict.fromkeys(stimuli, 'cat'), answers)['summary']
    assert found['people']['accuracy'] == 0.5 and found['classifier']['accuracy'] == 1
    assert found['classifier']['pairs']['a'] == {
        'error consistency': 0, 'observed consistency': 0, 'accuracy difference': 1,
    }  # fmt: skip
    # kappa is 0 / 0 there; the toolbox says 1
    assert found['classifier']['pairs']['b']['error consistency'] == 1


def test_agreement__table_by_hand():
    first, second = [True, True, True, False], [True, False, True, False]
    assert agreement(first, second) == pytest.approx(
        {'error consistency': (0.75 - 0.5) / 0.5, 'observed consistency': 0.75, 'accuracy difference': 0.25**2}
    )


def test_compare_set__only_undistorted_images():
    stimulus = Stimulus('cr', 'cat', '1.png')
    with pytest.raises(ValueError, match='images of cr only, which the benchmark leaves out'):
        compare_set({stimulus: 'cat'}, {'a': {stimulus: 'cat'}, 'b': {stimulus: 'cat'}}, ['cr'])


def first_line(text, **changes):
    """Change columns of the first answer."""
    head, line, rest = text.split('\n', 2)
    row = dict(zip(head.split(','), line.strip().split(','), strict=True))
    return '\n'.join([head, ','.join({**row, **changes}.values()), rest])


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda text: text.replace('object_response', 'answer', 1), r'csv has no column object_response\.'),
        (lambda text: text.split('\n')[0], r'csv has no rows\.'),
        (lambda text: '', r'csv has no column subj, object_response'),
        (lambda text: text + 'x' * 200_000, r'csv is not a CSV file \(field larger than'),
        (lambda text: first_line(text, object_response='gnu'), r"csv, line 2: object_response 'gnu' is neither 'na' nor one"),
        (lambda text: first_line(text, imagename='oven1.png'), r"csv, line 2: 'oven1.png' is not TRIAL_EXPERIMENT"),
        (
            lambda text: first_line(text, imagename='1_cl_s01_bw_gnu_40_n1_2.png'),
            r"csv, line 2: '1_cl_s01_bw_gnu_40_n1_2.png' is not TRIAL_.* with one of the classes airplane, bear",
        ),
        (lambda text: first_line(text, category='gnu'), r"csv, line 2: condition '.*' and category 'gnu' are not those of"),
        (lambda text: first_line(text, condition='c50'), r"csv, line 2: condition 'c50' and category '.*' are not those of"),
        (lambda text: text + text.strip().split('\n')[-1], r'csv, line 34: subject-02 has seen n\d+_\d+\.png before'),
        (lambda text: text + 'subject-02,1', r'csv, line 34: 8 values are expected'),
        (
            lambda text: '\n'.join(text.split('\n')[:-3]),
            r'subject-02 and subject-01 have different images .* only the first has none, only the second .*/.*; 30 are in',
        ),
        (lambda text: text.replace('_n0', '_m0'), r'different images .* only the first has .* and 30 more, .*; 0 are in both'),
    ],
)  # fmt: skip
def test_read_answers__other_tables(own, damage, message):
    path = own[1] / 'colour/colour_subject-02_session_1.csv'
    path.write_text(damage(path.read_text().replace('\r', '')))
    with pytest.raises(ValueError, match=message):
        read_answers(own[1], 'colour')


def test_read_answers__no_people(own):
    with pytest.raises(ValueError, match='has no sketch_subject-01_session_1.csv. Give the folder raw-data'):
        read_answers(own[1], 'sketch')
    for number in (2, 3):
        (own[1] / f'edge/edge_subject-0{number}_session_1.csv').unlink()
    with pytest.raises(ValueError, match='answers of subject-01 only. Two people are needed'):
        read_answers(own[1], 'edge')


def test_read_answers__networks_in_the_same_folder_are_no_people(own):
    """The published toolbox writes the decisions of networks beside the answers of people."""
    path = own[1] / 'edge/edge_resnet50_session-1.csv'
    path.write_text('subj,session\nresnet50,1\n')
    assert len(read_answers(own[1], 'edge')) == 3


def test_open_stimuli__other_images(own):
    answers = read_answers(own[1], 'colour')
    folder = own[0] / 'colour/dnn/session-1'
    some = sorted(folder.iterdir())[0]
    shutil.copy(some, folder / f'9{some.name}')
    with pytest.raises(ValueError, match=r'dnn has n00000000_0\.png twice'):
        open_stimuli(own[0], 'colour', answers, size=24)
    (folder / f'9{some.name}').unlink()
    some = some.rename(folder / 'mine.png')
    with pytest.raises(ValueError, match="dnn/session-1: 'mine.png' is not TRIAL_EXPERIMENT"):
        open_stimuli(own[0], 'colour', answers, size=24)
    some.unlink()
    with pytest.raises(
        ValueError, match='colour and the people of colour have different images .* only the first has none'
    ):
        open_stimuli(own[0], 'colour', answers, size=24)
    (own[0] / 'edge/oven').rename(own[0] / 'edge/stove')
    with pytest.raises(ValueError, match='edge/stove is not a folder of one of the classes airplane'):
        open_stimuli(own[0], 'edge', read_answers(own[1], 'edge'), size=24)
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match='dnn has no images'):
        open_stimuli(own[0], 'colour', answers, size=24)
