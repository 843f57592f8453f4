"""`mkd evaluate-classifier --model-vs-human`: a ViT beside people, computed again from the files alone."""

from __future__ import annotations

import csv
import json
from itertools import combinations

import numpy as np
import pytest
import torch
from helpers.human_files import SETS, write_sets
from mmengine.config import Config
from mmpretrain.registry import MODELS
from PIL import Image
from sklearn.metrics import cohen_kappa_score

from mkd_cli import evaluate_classifier as command
from mkd_plugin.evaluation.classifier import SIXTEEN
from mkd_plugin.utils.configs import config_root


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
    """A fine-tuning config with ImageNet's 1000 classes, and two checkpoints of random weights."""
    folder = tmp_path_factory.mktemp('classifier')
    base = config_root() / 'dbot' / 'finetune' / 'digits' / 'dbot-ft_digits.py'
    small = (
        'dict(backbone=dict(arch=dict(width=16, depth=1, num_heads=2)), head=dict(num_classes=1000, in_channels=16))'
    )
    (folder / 'config.py').write_text(f'_base_ = {str(base)!r}\nmodel = {small}\n')
    for seed in (0, 1):
        torch.manual_seed(seed)
        cfg = Config.fromfile(folder / 'config.py')
        cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
        model = MODELS.build(cfg.model).eval()
        torch.nn.init.normal_(model.head.fc.weight, std=3)
        torch.save(dict(state_dict=model.state_dict()), folder / f'run{seed}.pth')
    return folder / 'config.py', folder / 'run0.pth', folder / 'run1.pth', model


def right_by_hand(model, images, name):
    """Image → (condition, whether the network names it), from the files alone."""
    found = {}
    pixels = model.data_preprocessor
    for path in sorted((images / name).rglob('*.png')):
        fields = path.name.split('_') if name != 'edge' else ['', '', '', '0', path.parent.name]
        image = torch.from_numpy(np.asarray(Image.open(path).convert('RGB')).copy()).permute(2, 0, 1).float()
        with torch.no_grad():
            logits = model(((image - pixels.mean) / pixels.std)[None], mode='tensor')[0]
        odds = logits.double().softmax(0).numpy()
        means = {label: odds[ids].mean() for label, ids in SIXTEEN.items()}
        key = path.name if name == 'edge' else '_'.join(fields[6:])
        found[key] = (fields[3], max(means, key=means.get) == fields[4])
    return found


def people_by_hand(answers, name):
    people = []
    for path in sorted((answers / name).iterdir()):
        with path.open(newline='') as file:
            rows = [{key.lower(): value for key, value in row.items()} for row in csv.DictReader(file)]
        people.append({row['imagename'].split('_', 6)[6]: row['object_response'] == row['category'] for row in rows})
    return people


def test_command__beside_people(classifier, tmp_path, capsys):
    config, first, second, model = classifier
    images, answers = write_sets(tmp_path)
    out = tmp_path / 'out'
    folders = ['--model-vs-human', str(images), '--people', str(answers)]
    arguments = [str(config), str(first), str(second), *folders, '--size', '24', '--out', str(out)]
    assert command.main(arguments) == 0
    found = json.loads((out / 'humans.json').read_text())
    assert list(found['sets']) == ['colour', 'uniform-noise', 'edge'] and found['failures'] == []
    counted = {'colour': ['bw'], 'uniform-noise': ['0.10', '0.35'], 'edge': ['0']}
    kappas, chosen = [], set()
    for name in SETS:
        network, people = right_by_hand(model, images, name), people_by_hand(answers, name)
        theirs = found['sets'][name]['run1']
        per_condition, between = [], []
        for condition in counted[name]:
            keys = sorted(key for key, (shown, _) in network.items() if shown == condition)
            mine = [network[key][1] for key in keys]
            others = [[person[key] for key in keys] for person in people]
            part = theirs['conditions'][condition.replace('0.10', '0.1')]
            assert part['classifier']['accuracy'] == pytest.approx(np.mean(mine))
            wanted = [cohen_kappa_score(mine, other) for other in others]
            values = list(part['classifier']['pairs'].values())
            assert [value['error consistency'] for value in values] == pytest.approx(wanted, abs=1e-12)
            observed = [np.mean(np.equal(mine, other)) for other in others]
            assert [value['observed consistency'] for value in values] == pytest.approx(observed)
            per_condition.append(wanted)
            between.append([cohen_kappa_score(*pair) for pair in combinations(others, 2)])
            chosen |= set(mine)
        kappas.append((np.mean(per_condition), np.mean(between)))
        summary = theirs['summary']
        got = [summary[of]['error consistency'] for of in ('classifier', 'people')]
        assert got == pytest.approx(kappas[-1], abs=1e-12)
    assert chosen == {True, False}  # the network is neither always right nor always wrong
    means = [found['mean']['run1'][of]['error consistency'] for of in ('classifier', 'people')]
    assert means == pytest.approx(np.mean(kappas, axis=0))
    # the table says the same, the picture is one, and nothing is measured twice
    text = (out / 'humans.md').read_text()
    assert (
        f'| mean |  |  | run1 | {100 * found["mean"]["run1"]["classifier"]["accuracy"]:.1f} | {means[0]:.3f} |' in text
    )
    assert '| colour | cr (left out) | 16 | people |' in text and '| uniform-noise | 0.1 | 16 | run0 |' in text
    assert Image.open(out / 'humans.png').size[0] > 400
    printed = capsys.readouterr().out
    assert '| edge | all | 16 | run0 |' in printed and 'left out' not in printed
    assert command.main(arguments) == 0
    assert '6 jobs, 6 already done' in capsys.readouterr().err


def test_command__a_classifier_without_the_classes_of_imagenet(tmp_path, capsys):
    config = config_root() / 'dbot' / 'finetune' / 'digits' / 'dbot-ft_digits.py'
    model = MODELS.build(Config.fromfile(config).model)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'ten.pth')
    images, answers = write_sets(tmp_path)
    folders = ['--model-vs-human', str(images), '--people', str(answers)]
    out = tmp_path / 'out'
    assert command.main([str(config), str(tmp_path / 'ten.pth'), *folders, '--size', '24', '--out', str(out)]) == 1
    assert 'ten, colour: Each coarse class needs' in capsys.readouterr().out
    assert 'id from 0 to 9 may be' in (out / 'humans.md').read_text() and not (out / 'humans.png').exists()


def test_command__wrong_layout_is_told_before_anything_runs(classifier, tmp_path, capsys):
    config, first, *_ = classifier
    images, answers = write_sets(tmp_path)
    path = answers / 'uniform-noise' / 'uniform-noise_subject-02_session_1.csv'
    path.write_text(path.read_text().replace('category', 'klass', 1))
    folders = ['--model-vs-human', str(images), '--people', str(answers)]
    assert command.main([str(config), str(first), *folders, '--out', str(tmp_path / 'out')]) == 2
    assert f'{path} has no column category.' in capsys.readouterr().err and not (tmp_path / 'out').exists()
