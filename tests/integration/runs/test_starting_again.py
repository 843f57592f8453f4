"""Nothing of a run is lost by starting again: used, copied, mixed and shared folders, with real runs."""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path

import pytest
import torch
from helpers import ranks
from mmengine.logging import MMLogger
from mmengine.runner import Runner

from mkd_cli.train import main
from mkd_plugin.checkpoint.read import read_checkpoint
from mkd_plugin.engine.checkpoints import IN_FLIGHT, newest_checkpoint
from mkd_plugin.engine.run_folder import RUN, run_of
from mkd_plugin.engine.run_lock import LOCK

kill_resume = importlib.import_module('kill_resume')
differences = kill_resume.differences


class Stop(Exception):
    """Ends a run from inside."""


def stop(runner, outputs):
    raise Stop


def content(folder: Path) -> dict[str, bytes]:
    """All files but the log, to which everything in this process goes after the first run."""
    files = [path for path in folder.rglob('*') if path.is_file() and path.suffix != '.log']
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope='module')
def whole(tmp_path_factory, written_digits) -> Path:
    """The folder of a run that nothing happened to."""
    folder, threads = tmp_path_factory.mktemp('whole'), torch.get_num_threads()
    torch.set_num_threads(1)
    Runner.from_cfg(kill_resume.build_config(kill_resume.Scenario('epochs', 0), written_digits, folder)).train()
    torch.set_num_threads(threads)
    return folder


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    told: list[str] = []
    monkeypatch.setattr(MMLogger, 'warning', lambda self, message, *args: told.append(str(message)))
    return told


@pytest.fixture
def stopped(tmp_path, tiny_run, train):
    """Builds a run in a folder that was stopped after two of four epochs."""

    def build(name: str, step: int = 14):
        cfg = tiny_run(tmp_path / name)
        with pytest.raises(Stop):
            train(cfg, at=(step, stop))
        return cfg

    return build


def test_mkd_train__used_and_locked_folders_are_refused_before_anything_is_written(
    tmp_path, written_digits, one_thread, capsys
):
    config, folder = (
        ranks.write_config(tmp_path, written_digits, more='train_cfg = dict(max_epochs=2)'),
        tmp_path / 'run',
    )
    options = [str(config), '--work-dir', str(folder)]
    assert main(options) == 0
    before = content(folder)
    assert LOCK not in before and main(options) == 2 and content(folder) == before
    told = capsys.readouterr().err
    assert told.count('holds a run already') == 1 and 'Traceback' not in told
    assert main([*options, '--overwrite', '--resume']) == 2
    holder = dict(pid=os.getppid(), host='here')
    (folder / LOCK).write_text(json.dumps(holder))
    with (folder / LOCK).open('r+') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for more in ([], ['--resume'], ['--overwrite']):
            assert main([*options, *more]) == 2
            assert f'process {os.getppid()} on here is training there' in capsys.readouterr().err
        assert content(folder) == {**before, LOCK: json.dumps(holder).encode()}
    (folder / LOCK).unlink()
    assert main([*options, '--overwrite']) == 0
    (aside,) = tmp_path.glob('run.old-*')
    assert content(aside) == before and run_of(aside) != run_of(folder)
    assert newest_checkpoint(folder) == str(folder / 'epoch_2.pth')


def test_mkd_train__processes_stop_together_with_one_message(tmp_path, written_digits):
    config, folder = ranks.write_config(tmp_path, written_digits), tmp_path / 'run'
    folder.mkdir()
    (folder / 'epoch_9.pth').write_bytes(b'a week of work')
    assert ranks.train(config, folder) == [2, 2]
    told = [(folder / f'rank_{rank}.txt').read_text() for rank in range(2)]
    assert ''.join(told).count('holds a run already (epoch_9.pth)') == 1 and 'Traceback' not in ''.join(told)
    assert sorted(content(folder)) == ['epoch_9.pth', 'rank_0.txt', 'rank_1.txt']


def test_runner__a_fresh_start_of_a_hosts_own_tool_touches_no_file_of_the_run(tmp_path, tiny_run, train, stopped):
    stopped('run')
    before = content(tmp_path / 'run')
    with pytest.raises(ValueError, match='holds a run already'):
        train(tiny_run(tmp_path / 'run', resume=False))
    after = content(tmp_path / 'run')
    # mmengine writes its log and the config when the Runner is built, before any hook is called
    kept = [name for name in before if not name.endswith('.py')]
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    new = after.keys() - before.keys()
    assert all(name.endswith('.py') or ('/' in name and name.endswith(('.log', '.json'))) for name in new)


def test_resume__a_copied_folder_goes_on_from_the_copy(tmp_path, tiny_run, train, stopped):
    cfg = stopped('run')
    shutil.copytree(tmp_path / 'run', tmp_path / 'copy')
    train(cfg)  # the run is now further than its copy
    runner = train(tiny_run(tmp_path / 'copy'))
    assert runner._load_from == str(tmp_path / 'copy' / 'epoch_2.pth')
    assert differences(tmp_path / 'run', tmp_path / 'copy') == []
    shutil.rmtree(tmp_path / 'copy')
    shutil.copytree(tmp_path / 'run', tmp_path / 'copy')
    (tmp_path / 'copy' / 'last_checkpoint').write_text(str(tmp_path / 'run' / 'epoch_4.pth'))  # as 0.1.0 wrote it
    assert newest_checkpoint(tmp_path / 'copy') == str(tmp_path / 'copy' / 'epoch_4.pth')


def test_resume__takes_checkpoints_of_its_own_run_only(tmp_path, tiny_run, train, stopped, whole):
    cfg = stopped('mine', 8)
    shutil.copy(whole / 'epoch_4.pth', tmp_path / 'mine' / 'epoch_40.pth')
    runner = train(cfg)
    assert runner._load_from == str(tmp_path / 'mine' / 'epoch_1.pth')
    mine, other = run_of(tmp_path / 'mine'), run_of(whole)
    assert read_checkpoint(tmp_path / 'mine' / 'epoch_4.pth')['meta'][RUN] == mine != other
    with pytest.raises(ValueError, match=rf'epoch_40.pth is a checkpoint of run {other}, but .* holds run {mine}'):
        train(tiny_run(tmp_path / 'mine', load_from=str(tmp_path / 'mine' / 'epoch_40.pth')))
    train(tiny_run(tmp_path / 'third', load_from=str(whole / 'epoch_4.pth')))  # continued elsewhere
    assert run_of(tmp_path / 'third') == other


def test_resume__a_run_without_an_identity_goes_on_with_a_sentence(tmp_path, tiny_run, train, warnings):
    """As mmengine alone wrote it, and mkd_plugin 0.1.0 but for the config that it recorded."""
    cfg = tiny_run(tmp_path, resume=False)
    for name in ('exact_resume', 'metrics', 'preemption'):
        cfg.default_hooks.pop(name)
    cfg.default_hooks.checkpoint.type = 'CheckpointHook'
    with pytest.raises(Stop):
        train(cfg, at=(14, stop))
    assert train(tiny_run(tmp_path)).iter == 24
    assert any('epoch_2.pth names no run: mkd_plugin 0.1.0 wrote it' in told for told in warnings)
    assert read_checkpoint(tmp_path / 'epoch_4.pth')['meta'][RUN] == run_of(tmp_path)


def test_clean_up__takes_files_of_our_own_names_only(tmp_path, tiny_run, train):
    mine = ['thesis.tmp', '.editor.12.tmp', 'results.pth.tmp']
    for name in (*mine, 'epoch_3.pth.tmp', '.metrics.jsonl.7.tmp'):
        (tmp_path / name).write_text('x')
    with pytest.raises(Stop):
        train(tiny_run(tmp_path), at=(2, stop))
    assert sorted(path.name for path in tmp_path.glob('*.tmp')) == sorted(mine)


# --- Ctrl-C, and what breaks while a run is going on


def interrupt_all(runner, outputs):
    """As a terminal does: this process and its data workers."""
    for worker in torch.multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)


def end_workers() -> None:
    """The garbage collector would wait five seconds for each: it closes a loader's queues before it ends the workers."""
    for worker in torch.multiprocessing.active_children():
        worker.terminate()
        worker.join()


@pytest.mark.parametrize('workers', [0, 2])
def test_ctrl_c__saves_and_the_resumed_run_is_bit_identical(tmp_path, tiny_run, train, warnings, whole, workers):
    options = {'train_dataloader.num_workers': workers, 'train_dataloader.persistent_workers': workers > 0}
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as caught:
        train(tiny_run(tmp_path / 'run', **options), at=(9, interrupt_all))
    end_workers()
    assert caught.value.code == 130 and signal.getsignal(signal.SIGINT) == before
    assert 'Press Ctrl-C again' in warnings[-2] and 'Saved at iteration 9 ' in warnings[-1]
    assert (tmp_path / 'run' / 'last_checkpoint').read_text() == 'preempted.pth'
    assert not (tmp_path / 'run' / LOCK).exists()
    train(tiny_run(tmp_path / 'run'))
    assert differences(whole, tmp_path / 'run') == []


def test_ctrl_c__a_second_one_ends_at_once_and_spoils_nothing(tmp_path, tiny_run, train, whole):
    before = signal.getsignal(signal.SIGINT)

    def twice(runner, outputs):
        interrupt_all(runner, outputs)
        interrupt_all(runner, outputs)

    options = {'train_dataloader.num_workers': 2, 'train_dataloader.persistent_workers': True}
    with pytest.raises(KeyboardInterrupt):
        train(tiny_run(tmp_path / 'run', **options), at=(9, twice))
    end_workers()
    assert newest_checkpoint(tmp_path / 'run') == str(tmp_path / 'run' / 'epoch_1.pth')
    assert not list((tmp_path / 'run').glob('*.tmp')) and not (tmp_path / 'run' / LOCK).exists()
    assert signal.getsignal(signal.SIGINT) == before
    train(tiny_run(tmp_path / 'run'))
    assert differences(whole, tmp_path / 'run') == []


def test_ctrl_c__is_left_alone_where_the_caller_ignores_it(tmp_path, tiny_run, train):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        train(tiny_run(tmp_path), at=(9, interrupt_all))
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def deleted(folder: Path) -> None:
    wait(list(IN_FLIGHT))  # else the first checkpoint may appear in a folder that is being deleted
    shutil.rmtree(folder)


def full(folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))


def worker_killed(folder: Path) -> None:
    os.kill(torch.multiprocessing.active_children()[0].pid, signal.SIGKILL)


def train_into(disaster: Callable[[Path], None], config: Path, folder: Path) -> None:
    """`mkd train` in a process of its own, to which something happens on SIGUSR2."""
    log = os.open(config.with_name('said.txt'), os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    signal.signal(signal.SIGUSR2, lambda *_: disaster(folder))
    sys.exit(main([str(config), '--work-dir', str(folder)]))


@pytest.mark.parametrize(
    'disaster, wanted',
    [
        (deleted, 'was deleted or moved while the run was writing to it'),
        (full, 'File too large'),
        (worker_killed, 'A process that loads data died'),
    ],
)
def test_mkd_train__a_disaster_is_one_message_and_an_exit_code(tmp_path, written_digits, disaster, wanted):
    happens = "custom_hooks += [dict(type='SignalAt', step=15, name='SIGUSR2', ranks=[0])]"
    loader = 'train_dataloader.update(num_workers=1, persistent_workers=True)'
    config = ranks.write_config(tmp_path, written_digits, more=f'{happens}\n{loader}\nlog_level = "INFO"')
    folder = tmp_path / 'run'
    ranks.CONTEXT.set_forkserver_preload(ranks.PRELOAD)
    process = ranks.CONTEXT.Process(target=train_into, args=(disaster, config, folder))
    process.start()
    process.join(120)
    said = (tmp_path / 'said.txt').read_text()
    assert process.exitcode == 2, said[-3000:]
    assert said.count('error: ') == 1 and wanted in said and 'Traceback' not in said, said[-3000:]
    assert not folder.exists() if disaster is deleted else newest_checkpoint(folder) == str(folder / 'epoch_1.pth')
    assert not list(tmp_path.glob('run/*.tmp'))
