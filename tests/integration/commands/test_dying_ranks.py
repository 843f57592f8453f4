"""A process that dies, several machines, SLURM: the run ends in time, says why, and goes on to the same weights."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ranks

from mkd_plugin.datasets import write_digits

TOOLS = ranks.ROOT / 'tools'
differences = importlib.import_module('kill_resume').differences

KILLED = "custom_hooks += [dict(type='SignalAt', step=9, name='SIGKILL', ranks=[1], priority='VERY_HIGH')]"
MINUTES = 300  # seconds after which a launcher is taken to hang


def start(*command: object, **environment: str) -> subprocess.Popen[str]:
    """A launcher, with the hooks of ``ranks`` in reach."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith('SLURM')},
        **dict(OMP_NUM_THREADS='1', PYTHON=sys.executable, PYTHONPATH=str(ranks.ROOT / 'tests')),
        **environment,
    }
    pipe = subprocess.PIPE
    command = [str(part) for part in command]
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


@pytest.fixture(scope='module')
def digits(tmp_path_factory) -> Path:
    return write_digits(tmp_path_factory.mktemp('data') / 'digits')


@pytest.fixture(scope='module')
def whole(tmp_path_factory, digits) -> Path:
    """The folder of a run of two processes that nothing happened to."""
    folder = tmp_path_factory.mktemp('whole')
    assert ranks.train(ranks.write_config(folder, digits), folder) == [0, 0]
    return folder


def test_dist_train__a_killed_rank_ends_the_run_and_resuming_gives_the_same_weights(tmp_path, digits, whole):
    config = ranks.write_config(tmp_path, digits, more=KILLED)
    launcher = start(TOOLS / 'dist_train.sh', config, 2, '--work-dir', tmp_path)
    _, told = launcher.communicate(timeout=MINUTES)
    assert launcher.returncode not in (0, 85)
    assert '[dist_train] rank 1 was killed by SIGKILL, and the others were ended.' in told
    assert 'ran out of memory. Start again with --resume' in told
    assert (tmp_path / 'epoch_1.pth').exists() and not (tmp_path / 'epoch_2.pth').exists()
    assert ranks.train(config, tmp_path, '--resume') == [0, 0]
    assert differences(whole, tmp_path) == []


def test_dist_train__ctrl_c_saves_on_all_ranks_and_resuming_gives_the_same_weights(tmp_path, digits, whole):
    pressed = "custom_hooks += [dict(type='SignalAt', step=9, name='SIGINT', ranks=[0], launcher=True)]"
    workers = 'train_dataloader.update(num_workers=1, persistent_workers=True)'
    config = ranks.write_config(tmp_path, digits, more=f'{pressed}\n{workers}')
    launcher = start(TOOLS / 'dist_train.sh', config, 2, '--work-dir', tmp_path)
    said = ''.join(launcher.communicate(timeout=MINUTES))
    assert launcher.returncode == 130, said[-3000:]
    command = f'resume with: bash {TOOLS / "dist_train.sh"} {config} 2 --work-dir {tmp_path} --resume'
    assert said.count('Saved at iteration ') == said.count(command) == 1 and 'failed with' not in said
    assert 'Traceback' not in said and not (tmp_path / 'run.lock').exists()
    assert ranks.train(config, tmp_path, '--resume') == [0, 0]
    assert differences(whole, tmp_path) == []


@pytest.mark.slow
def test_dist_train__a_second_ctrl_c_ends_at_once_and_the_last_checkpoint_stands(tmp_path, digits, whole):
    signals = ', '.join(
        f"dict(type='SignalAt', step={step}, name='SIGINT', ranks=[0], launcher=True)" for step in (9, 11)
    )
    late = "default_hooks['preemption']['agree_every'] = 1000"
    config = ranks.write_config(tmp_path, digits, more=f'custom_hooks += [{signals}]\n{late}')
    launcher = start(TOOLS / 'dist_train.sh', config, 2, '--work-dir', tmp_path)
    said = ''.join(launcher.communicate(timeout=MINUTES))
    assert launcher.returncode == 130 and 'Saved at' not in said, said[-3000:]
    assert not list(tmp_path.glob('*.tmp')) and not (tmp_path / 'preempted.pth').exists()
    assert ranks.train(config, tmp_path, '--resume') == [0, 0]
    assert differences(whole, tmp_path) == []


def test_dist_train__two_machines_are_one_with_two_processes(tmp_path, digits, whole):
    config, port = ranks.write_config(tmp_path, digits), str(ranks.free_port())
    arguments = (TOOLS / 'dist_train.sh', config, 1, '--work-dir', tmp_path)
    nodes = [start(*arguments, NNODES='2', NODE_RANK=str(node), PORT=port) for node in range(2)]
    told = [node.communicate(timeout=MINUTES)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], told
    assert differences(whole, tmp_path) == []


SRUN = """
# starts the tasks of a step as SLURM does, and signals them when they are ready, as --signal does
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & tasks+=($!)
done
code=0
for task in "${tasks[@]}"; do wait "$task" || code=$?; done
exit $code
"""
SBATCH = """
while [[ $1 != --wrap ]]; do [[ $1 != --ntasks ]] || export SLURM_NTASKS=$2; shift; done
export SLURM_JOB_ID=7 SLURM_JOB_NODELIST=here
sh -c "$2"
"""
SCONTROL = """
[[ $1 != show ]] || echo 127.0.0.1
[[ $1 != requeue ]] || echo "$2" >> "$QUEUE"
"""


@pytest.mark.slow
@pytest.mark.parametrize('name', ['SIGUSR1', 'SIGTERM'])
def test_slurm_train__saves_is_queued_again_and_gives_the_same_weights(tmp_path, digits, whole, name):
    """SIGUSR1: the time is nearly over; SIGTERM: preempted."""
    (tmp_path / 'bin').mkdir()
    for command, body in dict(srun=SRUN, sbatch=SBATCH, scontrol=SCONTROL).items():
        (tmp_path / 'bin' / command).write_text(f'#!/bin/bash\n{body}')
        (tmp_path / 'bin' / command).chmod(0o755)
    signalled = f"custom_hooks += [dict(type='SignalAt', step=9, name='{name}', ranks=[0, 1], priority='VERY_HIGH')]"
    config, work_dir, queue = ranks.write_config(tmp_path, digits, more=signalled), tmp_path / 'run', tmp_path / 'queue'
    found = dict(PATH=f'{tmp_path}/bin:{os.environ["PATH"]}', QUEUE=str(queue), MASTER_PORT=str(ranks.free_port()))
    for _ in range(2):  # the second time it runs to its end, and is not queued again
        job = start(TOOLS / 'slurm_train.sh', 'gpus', 'job', config, work_dir, GPUS='2', **found)
        told = job.communicate(timeout=MINUTES)
        assert job.returncode == 0, told
        assert queue.read_text().split() == ['7']
    assert differences(whole, work_dir) == []
