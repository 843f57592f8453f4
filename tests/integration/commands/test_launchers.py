"""The launchers: several processes without a GPU, exit codes, SLURM's requeueing, and what the tools' arguments do."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS

from mkd_cli.torchrun import exit_code
from mkd_plugin.datasets import write_digits

ROOT = Path(__file__).resolve().parents[3]
TOOLS = ROOT / 'tools'

PROBE = '''
"""Parts that only this test needs: a mask that depends on the sample alone, and a record of what a step did."""
import numpy as np
import torch
import torch.distributed as dist
from mmcv.transforms import BaseTransform
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, OPTIM_WRAPPERS, TRANSFORMS


@TRANSFORMS.register_module()
class MaskBySample(BaseTransform):
    def transform(self, results):
        hidden = np.ones(9, dtype=bool)
        hidden[np.random.default_rng(results['sample_idx']).permutation(9)[:3]] = False
        results['mask'] = hidden
        return results


@OPTIM_WRAPPERS.register_module()
class Recording(OptimWrapper):
    def step(self, **kwargs):
        parameters = [p for group in self.param_groups for p in group['params']]
        self.grads = [p.grad.clone() for p in parameters if p.requires_grad]
        super().step(**kwargs)


@HOOKS.register_module()
class Record(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        model = getattr(runner.model, 'module', runner.model)
        rank = dist.get_rank() if dist.is_initialized() else 0
        torch.save(dict(
            loss=outputs['loss_feature'].detach(), grads=runner.optim_wrapper.grads, paths=len(data_batch['inputs']),
            teacher=dict(model.teachers.named_buffers()), student=model.backbone.state_dict(),
            unused=getattr(runner.model, 'find_unused_parameters', None),
        ), f'{runner.work_dir}/rank_{rank}_step_{runner.iter}.pt')
'''

CONFIG = """
_base_ = '{root}/configs/dbot/dbot_digits.py'
custom_imports = dict(imports=['mkd_plugin', 'probe'])
model = dict(backbone=dict(arch=dict(width=32, depth=2, num_heads=2), patch_size=8),
             masking=dict(_delete_=True, type='RandomMasking', num_visible=3),
             objectives=dict(feature=dict(head=dict(depth=1, width=16, num_heads=2))))
pipeline = [
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=24), dict(type='MaskBySample'),
    dict(type='PackInputs', algorithm_keys=('mask',)),
]
train_dataloader = dict(sampler=dict(shuffle=False), dataset=dict(data_root='{digits}', indices=16, pipeline=pipeline))
custom_hooks = [dict(type='Record')]
param_scheduler = []
train_cfg = dict(max_epochs=2)
optim_wrapper = dict(type='Recording', optimizer=dict(_delete_=True, type='SGD', lr=0.1))
randomness = dict(seed=0, diff_rank_seed=True)
"""


def run(*command, **environment) -> subprocess.CompletedProcess:
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHON': sys.executable, **environment}
    return subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True)


@pytest.fixture(scope='module')
def digits(tmp_path_factory) -> Path:
    return write_digits(tmp_path_factory.mktemp('data') / 'digits')


@pytest.fixture(scope='module')
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp('runs')


@pytest.fixture(scope='module')
def two_and_one(runs, digits) -> dict[str, list[dict]]:
    """What two processes of batch 4, and one of batch 8, did in each of four steps of two stages."""
    folder = runs
    (folder / 'probe.py').write_text(PROBE)
    (folder / 'config.py').write_text(CONFIG.format(root=ROOT, digits=digits))
    records: dict[str, list[dict]] = {}
    for processes, batch in ((2, 4), (1, 8)):
        work = folder / f'{processes}'
        options = ('--work-dir', work, '--cfg-options', f'train_dataloader.batch_size={batch}')
        launcher = (TOOLS / 'dist_train.sh', folder / 'config.py', 2)
        alone = (sys.executable, TOOLS / 'train.py', folder / 'config.py')
        done = run(*(launcher if processes == 2 else alone), *options, PYTHONPATH=str(folder))
        assert done.returncode == 0, done.stderr[-3000:]
        for rank in range(processes):
            records[f'{rank} of {processes}'] = [torch.load(work / f'rank_{rank}_step_{i}.pt') for i in range(4)]
    return records


def test_dist_train__two_processes_are_one_of_twice_the_batch(two_and_one):
    """Loss and gradients of every step, before and after the breakpoint, to 1e-6."""
    for step in range(4):
        first, second, alone = (two_and_one[name][step] for name in ('0 of 2', '1 of 2', '0 of 1'))
        assert (first['paths'], second['paths'], alone['paths']) == (4, 4, 8)
        torch.testing.assert_close((first['loss'] + second['loss']) / 2, alone['loss'], rtol=0, atol=1e-6)
        assert len(first['grads']) == len(alone['grads']) > 20
        assert max(grad.abs().max() for grad in alone['grads']) > 1e-3
        for ours, theirs in zip(first['grads'], alone['grads'], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_dist_train__ranks_agree_bit_for_bit(two_and_one):
    """Student and teacher start alike although each rank has its own seed, and stay so through a new stage."""
    for first, second in zip(two_and_one['0 of 2'], two_and_one['1 of 2'], strict=True):
        for part in ('student', 'teacher'):
            assert first[part] and first[part].keys() == second[part].keys()
            for name in first[part]:
                assert torch.equal(first[part][name], second[part][name]), name
        assert not torch.equal(first['loss'], second['loss'])  # they did see different images
    teachers = [record['teacher'] for record in two_and_one['0 of 2']]
    assert any(not torch.equal(teachers[1][name], teachers[2][name]) for name in teachers[1])  # it was promoted


def test_dist_train__searches_no_unused_parameters(two_and_one):
    assert [record['unused'] for record in two_and_one['0 of 2']] == [False] * 4


def test_dist_train__only_the_first_process_records(two_and_one, runs):
    """One line an epoch, with the images of both; losses are its own, as in the host's log."""
    work = runs / '2'
    rows = [json.loads(line) for line in (work / 'metrics.jsonl').read_text().splitlines()]
    assert [(row['iter'], row['stage']) for row in rows] == [(2, 1), (4, 2)]
    for row, first in zip(rows, (0, 2), strict=True):
        losses = [two_and_one['0 of 2'][step]['loss'].item() for step in (first, first + 1)]
        assert row['loss'] == pytest.approx(sum(losses) / 2, rel=1e-6)
        assert row['images_per_s'] == pytest.approx(2 * 4 / row['time'], rel=1e-6)
    assert len(list(work.glob('*/vis_data/events.out.tfevents.*'))) == 1
    assert (work / 'curves.png').is_file() and not list(work.glob('*.tmp'))


def test_dist_test__scores_as_one_process(digits, tmp_path):
    config = ROOT / 'configs/dbot/finetune/digits/dbot-ft_digits.py'
    sizes = {'model.backbone.arch': dict(width=96, depth=1, num_heads=4), 'model.backbone.patch_size': 8}
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(sizes)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build({'data_preprocessor': cfg.data_preprocessor, **cfg.model})
    checkpoint = tmp_path / 'random.pth'
    torch.save(dict(state_dict=model.state_dict()), checkpoint)

    options = ['model.backbone.arch.depth=1', 'model.backbone.patch_size=8', f'data_root={digits}']
    options += ['test_dataloader.batch_size=50', 'model.backbone.drop_path_rate=0.0']
    scores = []
    for command in (
        (sys.executable, TOOLS / 'test.py', config, checkpoint),
        (TOOLS / 'dist_test.sh', config, checkpoint, 2),
    ):
        out = tmp_path / f'{len(scores)}.json'
        done = run(*command, '--work-dir', tmp_path, '--out', out, '--out-item', 'metrics', '--cfg-options', *options)
        assert done.returncode == 0, done.stderr[-3000:]
        scores.append(json.loads(out.read_text()))
    assert scores[0] == scores[1] and 0 < scores[0]['accuracy/top1'] < 40

    command = (sys.executable, TOOLS / 'test.py', config, checkpoint, '--work-dir', tmp_path, '--cfg-options', *options)
    done = run(*command, 'model.backbone.arch.depth=2')
    assert done.returncode == 2
    assert 'is not a checkpoint of' in done.stderr and 'backbone.layers.1.ln1.weight' in done.stderr


def test_test__a_pretraining_has_nothing_to_evaluate(tmp_path):
    done = run(sys.executable, TOOLS / 'test.py', ROOT / 'configs/dbot/dbot_digits.py', 'x.pth')
    assert done.returncode == 2 and 'has no test_dataloader and test_evaluator' in done.stderr


def test_launchers__say_how_they_are_used():
    for script, usage in (
        ('dist_train.sh', 'usage: dist_train.sh CONFIG GPUS'),
        ('dist_test.sh', 'usage: dist_test.sh CONFIG CHECKPOINT GPUS'),
        ('slurm_train.sh', 'usage: slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR'),
    ):
        done = run(TOOLS / script, 'a', '0', 'x')
        assert done.returncode == 2 and usage in done.stderr


@pytest.mark.parametrize(
    'codes, wanted',
    [
        ([85], 85),
        ([85, -15], 85),  # torchrun ended the other one
        ([85, 1], 1),  # a rank that failed is a failure
        ([1, 85], 1),
        ([-9], 137),
        ([], 1),
    ],
)
def test_exit_code__of_a_run(codes, wanted):
    assert exit_code(codes) == wanted


@pytest.mark.parametrize('told', [signal.SIGTERM, signal.SIGUSR1])
def test_torchrun__hands_the_requeue_code_and_signals_on(tmp_path, told):
    script = tmp_path / 'trainer.py'
    script.write_text(
        textwrap.dedent("""
        import os, pathlib, signal, sys, time
        if sys.argv[1] == 'at once':
            sys.exit(85)
        rank, folder = os.environ['RANK'], pathlib.Path(sys.argv[2])
        def save(*_):
            (folder / f'saved_{rank}').touch()
            sys.exit(85)
        signal.signal(signal.SIGTERM, save)
        signal.signal(signal.SIGUSR1, save)
        (folder / f'ready_{rank}').touch()
        time.sleep(60)
        """)
    )
    launch = [sys.executable, '-m', 'mkd_cli.torchrun', '--standalone', '--nproc_per_node', '2', script]
    if told is signal.SIGTERM:
        assert run(*launch, 'at once').returncode == 85
    waiting = subprocess.Popen([str(part) for part in (*launch, 'wait', tmp_path)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob('ready_*'))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    waiting.send_signal(told)
    assert waiting.wait(60) == 85
    assert len(list(tmp_path.glob('saved_*'))) == 2


@pytest.fixture
def slurm(tmp_path):
    """SLURM's commands, which write down how they were called; sbatch runs what it is given, srun its command."""
    bin_folder = tmp_path / 'bin'
    bin_folder.mkdir()
    scripts = {
        'sbatch': 'export SLURM_JOB_ID=7; while [ "$1" != --wrap ]; do shift; done; sh -c "$2"',
        'srun': '"$TRAINER" "$@"',
        'scontrol': ':',
    }
    for name, body in scripts.items():
        path = bin_folder / name
        path.write_text(f'#!/bin/bash\nprintf "%s\\n" "{name} $*" >> {tmp_path}/calls\n{body}\n')
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return tmp_path, f'{bin_folder}:{os.environ["PATH"]}'


def submit(slurm, code: int) -> tuple[int, list[str]]:
    folder, path = slurm
    trainer = folder / 'trainer'
    trainer.write_text(f'#!/bin/bash\nexit {code}\n')
    trainer.chmod(0o755)
    arguments = ('gpus', 'my job', 'config.py', folder / 'work dir', '--cfg-options', 'a=[1,2]')
    done = run(TOOLS / 'slurm_train.sh', *arguments, PATH=path, TRAINER=str(trainer), GPUS='16')
    return done.returncode, (folder / 'calls').read_text().splitlines()


def test_slurm_train__asks_for_nodes_and_a_signal_in_time(slurm):
    code, calls = submit(slurm, 0)
    assert code == 0 and len(calls) == 2  # no scontrol
    batch, step = calls
    for wanted in ('--requeue', '--signal USR1@120', '--nodes 2', '--ntasks 16', '--ntasks-per-node 8', '--gres gpu:8'):
        assert wanted in batch
    assert f'--work-dir {slurm[0]}/work dir --launcher slurm --resume --cfg-options a=[1,2]' in step
    assert (slurm[0] / 'work dir').is_dir()


def test_slurm_train__requeues_on_85_alone(slurm):
    code, calls = submit(slurm, 85)
    assert code == 0 and calls[-1] == 'scontrol requeue 7'
    code, calls = submit(slurm, 1)
    assert code == 1 and 'scontrol' not in calls[-1]
