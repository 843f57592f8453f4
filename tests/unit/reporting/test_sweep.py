"""Fine-tuning sweeps: their configs, scores, resuming and messages, and that frozen blocks do not move in a real run."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.networks import scatter_weights
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner
from PIL import Image
from torch import nn

import mkd_plugin
from mkd_cli.main import main
from mkd_plugin.datasets import draw_labelled, write_digits
from mkd_plugin.engine import FreezeHook
from mkd_plugin.models.students import VisibleViT
from mkd_plugin.preflight.rehearsal import rehearse
from mkd_plugin.reporting.benchmark.jobs import Trainings
from mkd_plugin.reporting.sweep import configs_of

# Stands for tools/train.py: notes the start and the seed, and scores 50 + 1000 · rate + 10 · seed² (+ 5 from `b`).
TRAINER = """
import json, os, pathlib, signal, sys, time
folder, job, task, start, seed = pathlib.Path(sys.argv[1]), *sys.argv[2:5], int(sys.argv[5])
with open('calls.txt', 'a') as calls:
    calls.write(job + '\\n')
if os.path.exists('interrupt') and seed == 1:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(85))
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(60)
if job == 'frozen=2 from scratch, seed 0':
    sys.exit('the 7th image is broken')
score = 50 + 1000 * float(task.split('=')[1]) + 10 * seed ** 2 + 5 * (start == 'b')
row = {'mode': 'val', 'iter': 4, 'accuracy/top1': score}
(folder / 'metrics.jsonl').write_text(json.dumps(row) + '\\n')
"""


@pytest.fixture
def cfg():
    return mkd_plugin.get_config('dbot/finetune/digits/dbot-ft_digits')


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    """The real digits, two labels a class."""
    root = tmp_path_factory.mktemp('digits')
    write_digits(root)
    return root, str(draw_labelled(root, 2, 0).relative_to(root))


def tiny(cfg, digits, work_dir, iterations=3):
    """The same config with a network of three blocks and few steps."""
    root, listed = digits
    cfg.train_dataloader.dataset.update(data_root=str(root), ann_file=listed)
    cfg.val_dataloader.dataset.data_root = str(root)
    cfg.model.backbone.update(arch=dict(width=32, depth=3, num_heads=4), drop_path_rate=0.5)
    cfg.model.head.in_channels = 32
    cfg.train_cfg.update(max_iters=iterations, val_interval=iterations)
    cfg.param_scheduler, cfg.log_level, cfg.work_dir = None, 'ERROR', str(work_dir)
    cfg.optim_wrapper.optimizer.weight_decay = 10.0  # would move whatever is not really frozen
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
    return cfg


@pytest.fixture
def stubbed(digits, tmp_path, monkeypatch):
    """An empty folder with two checkpoints, and a trainer that gives known scores; returns the first words of a command."""
    monkeypatch.chdir(tmp_path)
    Path('trainer.py').write_text(TRAINER)
    for name in ('a', 'b'):
        torch.save({name: torch.zeros(1)}, f'{name}.pth')
    monkeypatch.setattr(
        Trainings, 'command',
        lambda self, job: [
            sys.executable, '-I', '-S', 'trainer.py', str(self.work_dir(job)), str(job), job.task, job.start, str(job.seed),
        ],
    )  # fmt: skip
    root, listed = digits
    options = ['--cfg-options', f'data_root={root}', f'train_dataloader.dataset.ann_file={listed}']
    return lambda *words: main(['sweep', 'dbot/finetune/digits/dbot-ft_digits', *words, *options])


def calls():
    """The trainings that were begun since the last time."""
    file = Path('calls.txt')
    begun = file.read_text().splitlines() if file.is_file() else []
    file.unlink(missing_ok=True)
    return begun


def test_configs__frozen_blocks(cfg):
    before = copy.deepcopy(cfg.to_dict())
    runs = configs_of(cfg, 'frozen', [0, 2])
    assert cfg.to_dict() == before == runs[0].to_dict()
    assert runs[2].custom_hooks == [*cfg.get('custom_hooks', []), dict(type='mkd_plugin.FreezeHook', blocks=2)]
    assert runs[2].find_unused_parameters
    assert runs[2].optim_wrapper == cfg.optim_wrapper


def test_configs__learning_rates(cfg):
    runs = configs_of(cfg, 'rates', [1e-3, 3e-5])
    assert [run.optim_wrapper.optimizer.lr for run in runs.values()] == [1e-3, 3e-5] == list(runs)
    assert cfg.optim_wrapper.optimizer.lr == 1e-3
    runs[3e-5].optim_wrapper.optimizer.lr = 0.1
    assert runs[1e-3].optim_wrapper.optimizer.lr == 1e-3


def test_sweep__scores_of_all_starts_and_seeds(stubbed, capsys):
    command = ['--rates', '0.01', '0.001', '--start', 'a.pth', 'b=b.pth', 'scratch', '--seeds', '2', '--out', 'out']
    assert stubbed(*command) == 0
    assert len(calls()) == 2 * 3 * 2
    found = json.loads(Path('out/sweep.json').read_text())
    assert found['axes'] == ['learning rate', 'top-1, per cent'] and found['failed'] == {}
    for start, extra in (('a', 0), ('b', 5), ('scratch', 0)):
        for rate in ('0.01', '0.001'):
            seeds = np.array([0, 10]) + 50 + 1000 * float(rate) + extra
            got = found['scores'][start][rate]
            assert [got['mean'], got['std']] == pytest.approx([seeds.mean(), seeds.std(ddof=1)])
            assert got['seeds'] == pytest.approx({'0': seeds[0], '1': seeds[1]})
    assert '61.0 ± 7.1' in capsys.readouterr().out  # from b at 0.001
    with Image.open('out/sweep.png') as picture:
        assert min(picture.size) > 400 and np.asarray(picture.convert('L')).std() > 5
    rates = [Config.fromfile(file).optim_wrapper.optimizer.lr for file in sorted(Path('out/configs').iterdir())]
    assert rates == [0.001, 0.01]
    assert stubbed(*command[:2], '0.003', *command[3:]) == 0  # 0.01 is finished
    assert len(calls()) == 6


def test_sweep__interrupted_and_resumed(stubbed, capsys):
    Path('interrupt').touch()
    command = ['--frozen', '0', '1', '--start', 'a.pth', '--seeds', '2', '--out', 'out']
    assert stubbed(*command) == 130
    assert 'Rerun the command to resume from out' in capsys.readouterr().err
    assert len(calls()) == 3 and not Path('out/sweep.json').exists()
    Path('interrupt').unlink()
    assert stubbed(*command) == 0
    assert calls() == ['frozen=0 from a, seed 1', 'frozen=1 from a, seed 1']


def test_sweep__a_failed_training_does_not_lose_the_others(stubbed, capsys):
    assert stubbed('--frozen', '0', '2', '--out', 'out') == 1
    found = json.loads(Path('out/sweep.json').read_text())
    assert found['scores'] == {'scratch': {'0': dict(mean=50.0, std=None, seeds={'0': 50.0})}}
    assert 'the 7th image is broken' in found['failed']['frozen=2 from scratch, seed 0']
    assert 'the 7th image is broken' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--rates', '1e-3', '1e-3'], '--rates 0.001 0.001: give each value once.'),
        (['--rates', '1e-3', '0'], '--rates 0.001 0.0: learning rates must be positive'),
        (['--rates', 'nan'], '--rates nan: learning rates must be positive'),
        (['--frozen', '0', '5'], 'blocks=5: the backbone has 4. Use from 1 to 4'),
        (['--frozen', '0', '--start', 'c.pth'], 'c.pth: no such checkpoint'),
        (['--frozen', '0', '--start', 'trainer.py'], 'trainer.py'),
        (['--frozen', '0', '--out', 'a.pth'], 'nothing can be written there (a.pth is a file'),
    ],
)
def test_sweep__mistakes(stubbed, capsys, words, message):
    before = sorted(Path().iterdir())
    assert stubbed(*words) == 2
    assert message in capsys.readouterr().err.replace(f'{Path().absolute()}/', '')
    assert sorted(Path().iterdir()) == before


def test_freeze_hook__embeddings_and_first_blocks_stay(cfg, digits, tmp_path):
    """Two of three blocks: none of their numbers moves, all others do, and only those others are in training mode."""
    run = configs_of(tiny(cfg, digits, tmp_path), 'frozen', [2])[2]
    runner = Runner.from_cfg(run)
    before = {name: w.detach().clone() for name, w in runner.model.named_parameters()}
    modes = []
    runner.model.backbone.register_forward_hook(
        lambda backbone, inputs, output: modes.append([block.training for block in backbone.layers])
    )
    runner.train()
    stayed = {name for name, w in runner.model.named_parameters() if torch.equal(w, before[name])}
    frozen = (
        'backbone.patch_embed',
        'backbone.cls_token',
        'backbone.pos_embed',
        'backbone.layers.0',
        'backbone.layers.1',
    )
    assert stayed == {name for name in before if name.startswith(frozen)}
    assert modes[:3] == [[False, False, True]] * 3


def test_rehearsal__more_frozen_blocks_than_there_are(cfg, digits, tmp_path):
    with pytest.raises(ValueError, match='blocks=4: the backbone has 3. Use from 1 to 3'):
        rehearse(configs_of(tiny(cfg, digits, tmp_path), 'frozen', [4])[4])
    with pytest.raises(ValueError, match='blocks=0: it must be at least 1'):
        FreezeHook(blocks=0)
    model = nn.Module()
    model.backbone = MODELS.build(dict(type='mmpretrain.ConvNeXt', arch=dict(depths=[1] * 4, channels=[8] * 4)))
    with pytest.raises(ValueError, match='ConvNeXt has no list of blocks. Use a ViT'):
        FreezeHook(blocks=1).freeze(model)


@pytest.mark.slow
def test_sweep__of_real_trainings(cfg, digits, tmp_path, monkeypatch):
    """From a checkpoint, as a user types it: the accuracy is a number of 357 scans, and the frozen weights are the start's."""
    monkeypatch.chdir(tmp_path)
    tiny(cfg, digits, None, iterations=2).default_hooks.checkpoint.update(interval=2, by_epoch=False)
    cfg.pop('work_dir')
    cfg.dump('tiny.py')
    torch.manual_seed(0)
    network = scatter_weights(VisibleViT(arch=cfg.model.backbone.arch, img_size=24, patch_size=4), std=0.1)
    state = {f'backbone.{name}': value for name, value in network.state_dict().items()}
    about = dict(backbone=network.options, pixel_mean=[77.9] * 3, pixel_std=[92.8] * 3, teachers=[])
    torch.save(dict(state_dict=state, meta=dict(mkd_plugin=about)), 'start.pth')
    assert main(['sweep', 'tiny.py', '--frozen', '3', '--start', 'start.pth', '--out', 'out']) == 0
    (mean,) = (of['mean'] for of in json.loads(Path('out/sweep.json').read_text())['scores']['start'].values())
    assert mean * 3.57 == pytest.approx(round(mean * 3.57), abs=1e-3)
    (checkpoint,) = Path('out/jobs').glob('*/iter_2.pth')
    trained = torch.load(checkpoint)['state_dict']
    block = [name for name in state if name.startswith('backbone.layers.2.')]
    assert block and all(torch.equal(trained[name], state[name]) for name in block)
