from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.labelled_files import write_images
from mmpretrain.registry import MODELS
from PIL import Image

from mkd_cli import evaluate_classifier as command
from mkd_plugin.evaluation.classifier import (
    SIXTEEN,
    folder_accuracy,
    load_classifier,
    read_classes,
    shape_bias,
)
from mkd_plugin.evaluation.images import Preprocessing, open_images
from mkd_plugin.utils.configs import config_root

PLAIN = Preprocessing((20, 20), 20)


class Brightest(torch.nn.Module):
    """Decides by the brightest channel: logit ``ids[c]`` is the mean of channel c of the un-normalised image."""

    def __init__(self, classes: int, ids: tuple[int, int, int]) -> None:
        super().__init__()
        self.classes, self.ids = classes, list(ids)
        self.data_preprocessor = MODELS.build(
            dict(type='ClsDataPreprocessor', mean=[10.0, 20.0, 30.0], std=[2.0, 3.0, 4.0], to_rgb=True)
        )

    def forward(self, inputs, mode):
        pixels = inputs * self.data_preprocessor.std + self.data_preprocessor.mean
        logits = torch.zeros(len(inputs), self.classes)
        logits[:, self.ids] = pixels.mean(dim=(2, 3))
        return logits


class Favourite(Brightest):
    """The same, but 'eel' (4) is always likelier."""

    def forward(self, inputs, mode):
        logits = super().forward(inputs, mode)
        logits[:, 4] = 1000
        return logits


def test_folder_accuracy__classes_by_name_and_only_those_of_the_folder(tmp_path):
    images = open_images(write_images(tmp_path, 'a', ('bee', 'dog', 'fox')), PLAIN)  # red, green, blue
    classes = ['ant', 'bee', 'cat', 'dog', 'eel', 'fox']
    assert folder_accuracy(Brightest(6, (1, 3, 5)), images, classes, batch_size=5) == 100
    # nothing beats 'eel', but it is not in the folder
    assert folder_accuracy(Favourite(6, (1, 3, 5)), images, classes) == 100
    assert folder_accuracy(Brightest(6, (3, 1, 5)), images, classes) == pytest.approx(100 / 3)


def test_folder_accuracy__names_that_do_not_match(tmp_path):
    images = open_images(write_images(tmp_path, 'a', ('bee', 'gnu')), PLAIN)
    with pytest.raises(ValueError, match='class folders gnu are not among the 3'):
        folder_accuracy(Brightest(3, (0, 1, 2)), images, ['ant', 'bee', 'cat'])
    with pytest.raises(ValueError, match='2 names for the 3 classes'):
        folder_accuracy(Brightest(3, (0, 1, 2)), images, ['bee', 'gnu'])


def write_cues(tmp_path, names):
    for name, colour in names.items():
        path = tmp_path / 'cues' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (20, 20), colour).save(path)
    return open_images(tmp_path / 'cues', PLAIN)


def test_shape_bias__by_hand(tmp_path):
    red, green, blue = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    images = write_cues(
        tmp_path,
        {
            'cat/cat1-dog2.png': red,  # decided for cat: shape
            'cat/cat3-knife1.png': green,  # dog: neither
            'dog/dog1-cat1.png': red,  # cat: texture
            'dog/dog2-knife1.png': green,  # dog: shape
            'knife/knife1-knife2.png': blue,  # no conflict
        },
    )
    found = shape_bias(Brightest(1000, (281, 152, 499)), images)
    assert (found.shape, found.texture, found.other, found.dropped) == (2, 1, 1, 1)
    assert found.bias == pytest.approx(2 / 3)


def test_shape_bias__bad_input(tmp_path):
    with pytest.raises(ValueError, match='gnu1-cat1.png do not name a shape'):
        shape_bias(Brightest(1000, (0, 1, 2)), write_cues(tmp_path, {'cat/gnu1-cat1.png': (0, 0, 0)}))
    images = write_cues(tmp_path / 'other', {'cat/cat1-dog1.png': (0, 0, 0)})
    with pytest.raises(ValueError, match='id from 0 to 9'):
        shape_bias(Brightest(10, (0, 1, 2)), images)


def test_sixteen__sizes_of_the_published_lists():
    sizes = {name: len(ids) for name, ids in SIXTEEN.items()}
    assert sizes == dict(
        airplane=1, bear=4, bicycle=2, bird=49, boat=5, bottle=7, car=3, cat=6, chair=4, clock=3, dog=109, elephant=2,
        keyboard=2, knife=1, oven=1, truck=8,
    )  # fmt: skip


def test_read_classes__folder_or_file(tmp_path):
    folder = write_images(tmp_path, 'train', ('bee', 'ant'), count=1)
    (tmp_path / 'names.txt').write_text('cat\nbee\n')
    assert read_classes(folder) == ['ant', 'bee'] and read_classes(tmp_path / 'names.txt') == ['cat', 'bee']
    with pytest.raises(ValueError, match='does not exist'):
        read_classes(tmp_path / 'nothing')
    (tmp_path / 'names.txt').write_text('great white shark\n\ntiger shark \n')
    assert read_classes(tmp_path / 'names.txt') == ['great white shark', 'tiger shark']
    (tmp_path / 'names.txt').write_text('cat\ncat\n')
    with pytest.raises(ValueError, match='one twice'):
        read_classes(tmp_path / 'names.txt')


@pytest.fixture(scope='module')
def fine_tuned(tmp_path_factory) -> tuple[Path, Path]:
    """The digits' fine-tuning config, and a checkpoint of random weights."""
    from mmengine.config import Config

    config = config_root() / 'dbot' / 'finetune' / 'digits' / 'dbot-ft_digits.py'
    model = MODELS.build(Config.fromfile(config).model)
    path = tmp_path_factory.mktemp('classifier') / 'epoch_1.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    return config, path


def test_load_classifier__other_config(fine_tuned, tmp_path):
    config, path = fine_tuned
    weights = torch.load(path)['state_dict']
    weights['head.fc.weight'] = weights['head.fc.weight'][:5]
    torch.save(dict(state_dict=weights), tmp_path / 'five.pth')
    with pytest.raises(ValueError, match='head.fc.weight'):
        load_classifier(config, tmp_path / 'five.pth')


def test_command__one_table(fine_tuned, tmp_path, capsys):
    config, path = fine_tuned
    write_images(tmp_path, 'digits', [str(digit) for digit in range(10)], count=1)
    write_images(tmp_path, 'other', ('1', 'x'), count=1)
    out = tmp_path / 'out'
    folders = ['--folders', f'digits={tmp_path / "digits"}', f'other={tmp_path / "other"}']
    arguments = [
        str(config),
        str(path),
        *folders,
        '--classes',
        str(tmp_path / 'digits'),
        '--size',
        '24',
        '--out',
        str(out),
    ]
    assert command.main(arguments) == 1
    found = json.loads((out / 'evaluation.json').read_text())
    (row,), (failure,) = found['rows'], found['failures']
    images = open_images(tmp_path / 'digits', Preprocessing.standard((24, 24)))
    assert row['top1'] == pytest.approx(folder_accuracy(load_classifier(config, path), images, images.classes))
    assert failure['protocol'] == 'other' and 'class folders x are not' in failure['reason']
    assert command.main([str(config), str(path), '--out', str(out)]) == 2
    assert 'Give --folders' in capsys.readouterr().err
