"""`mkd pretrain`: from a folder of images to a checkpoint, a page and a graph."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.networks import scatter_weights
from mmengine.config import Config
from PIL import Image

from mkd_cli.command import Parser
from mkd_cli.main import main
from mkd_cli.pretrain import add_arguments
from mkd_plugin.interop.open_model import open_model
from mkd_plugin.interop.specs import ModelSpec
from mkd_plugin.models.vit import VisionTransformer
from mkd_plugin.preflight.memory import memory_needed
from mkd_plugin.pretraining import run
from mkd_plugin.pretraining.config import config_of, schedule_of_method, text_of
from mkd_plugin.pretraining.recipe import METHODS, STUDENTS, Data, Machine, Recipe, Request, choose
from mkd_plugin.pretraining.run import find_images, open_teachers, time_of_step, try_steps

CPU = Machine(gpus=0, cores=2, bfloat16=False)
ARCH = dict(width=48, depth=4, num_heads=3)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """40 images of 36 × 48 pixels in two class folders."""
    root, generator = tmp_path_factory.mktemp('photos'), np.random.default_rng(0)
    for number in range(40):
        path = root / 'ab'[number % 2] / f'{number:02}.png'
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(256, size=(36, 48, 3), dtype=np.uint8)).save(path)
    return root


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    """A file of ours with a small ViT of patches of 8 pixels, CLIP's pixels and four heads more than the student."""
    network = scatter_weights(VisionTransformer(arch=ARCH, img_size=48, patch_size=8, position='learned'))
    about = dict(version='0', backbone=network.options, pixel_mean=[120.0] * 3, pixel_std=[70.0] * 3, teachers=[])
    path = tmp_path_factory.mktemp('teacher') / 'teacher.pth'
    state = {f'backbone.{name}': value for name, value in network.state_dict().items()}
    torch.save(dict(meta=dict(epoch=1, mkd_plugin=about), state_dict=state), path)
    return path


def small_recipe(method: str, teachers: int) -> Recipe:
    schedules = {name: schedule_of_method(name) for name in METHODS}
    request = Request(method, teachers, student='ti', size=32, epochs=2, batch=4)
    return choose(request, Data(40, 36), CPU, schedules)


@pytest.mark.parametrize(
    ('method', 'teachers'),
    [('dbot', 0), ('mae', 0), ('maskdistill', 1), ('maskdistill', 2), ('dmae', 2), ('hybrid', 2)],
)
def test_config__every_method_takes_a_step(folder, teacher, method, teachers):
    opened = open_teachers([f't{number}={teacher}' for number in range(teachers)])
    recipe = small_recipe(method, teachers)
    cfg = config_of(recipe, find_images(folder).dataset, opened)
    assert time_of_step(cfg, 2) > 0
    assert memory_needed(cfg, 2)[1] > 2 * memory_needed(cfg, 1)[1] * 0.9 > 0
    objectives = [entry for entry in cfg.model.objectives.values() if entry.teacher in opened]
    weights = [entry.get('weight', 1.0) for entry in objectives]
    assert sum(weights) == pytest.approx(2.0 if method == 'hybrid' else min(teachers, 1))


def test_try_steps__out_of_memory_halves_what_is_computed_at_once(folder, monkeypatch, capsys):
    tried = []

    def fail_twice(cfg, images):
        tried.append(images)
        if len(tried) < 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory") if tried[1:] else torch.OutOfMemoryError
        return 0.1

    monkeypatch.setattr(run, 'time_of_step', fail_twice)
    recipe = replace(small_recipe('dbot', 0), batch=64)
    cfg = config_of(recipe, find_images(folder).dataset, {})
    try_steps(cfg, recipe, Machine(gpus=1, cores=2, bfloat16=True))
    assert (tried, recipe.batch, recipe.accumulate) == ([64, 32, 16], 64, 4)
    told = capsys.readouterr().out
    assert told.startswith('64 images at once do not fit in memory: trying 32, and accumulating 2 steps')
    again = config_of(recipe, find_images(folder).dataset, {})
    assert (again.train_dataloader.batch_size, again.optim_wrapper.accumulative_counts) == (16, 4)
    assert again.train_cfg.max_iters == recipe.stages * recipe.steps * 4


@pytest.mark.parametrize(
    ('argv', 'wanted'), [(['mkd', 'pretrain', 'a b'], "mkd pretrain 'a b' --resume"), (['x.py'], None)]
)
def test_train__an_interrupted_trainer_names_the_command_of_the_user(tmp_path, monkeypatch, argv, wanted):
    given = []

    class Trainer:
        def __init__(self, command, env):
            given.append(env)

        def wait(self):
            return 130

    monkeypatch.delenv('MKD_COMMAND', raising=False)
    monkeypatch.setattr(run.sys, 'argv', argv)
    monkeypatch.setattr(run.subprocess, 'Popen', Trainer)
    assert run.train(tmp_path / 'pretrain.py', tmp_path, CPU, resume=False) == 130
    assert given[0].get('MKD_COMMAND') == wanted and given[0]['CUDA_VISIBLE_DEVICES'] == ''


def test_parser__offers_every_method_and_student():
    parser = Parser()
    add_arguments(parser)
    choices = {action.dest: action.choices for action in parser._actions}
    assert (choices['method'], choices['student']) == (list(METHODS), list(STUDENTS))


def test_config__teacher_of_timm(folder, tmp_path):
    import timm

    path = tmp_path / 'resnet.pth'
    torch.save(timm.create_model('resnet10t', num_classes=0).state_dict(), path)
    cfg = config_of(
        small_recipe('maskdistill', 1), find_images(folder).dataset, open_teachers([f'timm:resnet10t={path}'])
    )
    assert time_of_step(cfg, 2) > 0
    assert memory_needed(cfg, 1)[0].teachers > 4 * 4.9e6  # resnet10t has 5.4 million


def test_text__reads_back_as_the_same_config(folder, tmp_path):
    recipe, found = small_recipe('dbot', 0), find_images(folder)
    cfg = config_of(recipe, found.dataset, {})
    path = tmp_path / 'config.py'
    path.write_text(text_of(cfg, recipe, found.data, 'mkd pretrain'))
    again = Config.fromfile(path)
    for key in ('model', 'optim_wrapper', 'param_scheduler', 'train_cfg'):
        assert again[key] == cfg[key]
    assert all(line in path.read_text() for line in ('# Written by `mkd pretrain`', '#   rate', '# --- images ---'))


def test_pretrain__then_look_and_export(folder, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    out = tmp_path / 'out'
    arguments = [str(folder), '--out', str(out), '--student', 'ti', '--size', '32', '--epochs', '2', '--batch', '8']
    assert main(['pretrain', *arguments]) == 0
    printed = capfd.readouterr().out
    assert 'ViT-Ti/4' in printed
    assert 'warning: 10 updates a stage' in printed
    assert 'k-NN (k = 10) on 8 images against 32' in printed
    made = out / 'iter_10.pth'
    assert f'mkd export {made}' in printed
    before = (out / 'pretrain.py').read_bytes()
    assert main(['pretrain', str(folder), '--out', str(out), '--method', 'mae']) == 2
    assert 'holds a run already. Add --resume' in capfd.readouterr().err
    assert (out / 'pretrain.py').read_bytes() == before
    assert open_model(ModelSpec(str(made)), known={}, device='cpu').network.image_hw == (32, 32)

    assert (
        main(['look', str(made), str(folder), '--out', str(tmp_path / 'look.html'), '--rows', '2', '--pictures', '2'])
        == 0
    )
    page = (tmp_path / 'look.html').read_text()
    assert page.count('data:image/webp') == 2 * 8 + 2 * 2
    assert str(tmp_path) not in page

    graph = tmp_path / 'student.onnx'
    assert main(['export', str(made), str(graph), '--to', 'onnx']) == 0
    assert 'ONNX Runtime' in capfd.readouterr().out
    assert graph.stat().st_size > 2**20


@pytest.mark.parametrize('student', ['l', 'b'])
def test_pretrain__a_student_that_does_not_fit_is_refused_before_work_begins(
    folder, tmp_path, capfd, monkeypatch, student
):
    """On a machine with 1.4 GiB: a step of one image of ViT-S needs less, of ViT-B and ViT-L more."""
    monkeypatch.setattr(run, 'memory_free', lambda: int(1.4 * 2**30))
    monkeypatch.setattr(run, 'try_steps', None)
    out = tmp_path / 'out'
    arguments = [str(folder), '--student', student, '--method', 'mae', '--size', '32', '--epochs', '2', '--batch', '8']
    assert main(['pretrain', *arguments, '--out', str(out), '--devices', 'cpu']) == 2
    said = capfd.readouterr().err
    needed = dict(l='5.2', b='1.7')[student]
    assert f'--student {student} needs {needed} GiB for a step of one image' in said
    assert 'step of one image, 1.4 GiB are free. --student s fits: 0.4 GiB.' in said
    assert not out.exists()


def test_check_memory__nothing_fits(folder, monkeypatch):
    monkeypatch.setattr(run, 'memory_free', lambda: 2**20)
    cfg = config_of(small_recipe('mae', 0), find_images(folder).dataset, {})
    run.init_default_scope('mmpretrain')
    with pytest.raises(
        ValueError, match='--student ti needs 0.1 GiB .* 0.0 GiB are free, and no smaller --student fits'
    ):
        run.check_memory(lambda student: cfg, 'ti')


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        (['nowhere'], 'nowhere does not exist'),
        (['.', '--devices', '9'], 'this machine has'),
        (['.', '--batch', 'many'], "give 'auto' or a number of images"),
        (['.', '--epochs', '-1'], 'give a number above 0'),
        (['.', '--resume', '--out', 'unused'], 'has no pretrain.py'),
        (['.', '--teacher', 'nothing.pth'], 'nothing.pth does not exist'),
        (['.', '--method', 'dmae'], '--method dmae takes 1 to 8 teachers, got 0'),
        (['empty'], 'has no images'),
    ],
)
def test_pretrain__mistakes(folder, tmp_path, capfd, monkeypatch, arguments, sentence):
    monkeypatch.chdir(folder)
    if arguments == ['empty']:
        arguments = [str(tmp_path)]
    assert main(['pretrain', *arguments]) == 2
    assert sentence in capfd.readouterr().err
    assert not (folder / 'work_dirs').exists()
