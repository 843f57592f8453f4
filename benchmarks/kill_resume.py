"""Kill training runs with SIGKILL, resume them, and compare them bit for bit with an uninterrupted run.

    python benchmarks/kill_resume.py --kills 100 [--seed 0] [--folder DIR]

Half of the kills come at a random moment, the others at the most dangerous ones (`AIMS`): while a checkpoint is written,
between two steps of replacing it, in the middle of a change of stage. Every scenario is a tiny dBOT on the embedded digits in
two stages. If the runs differ, the program exits with code 1 and keeps the folder.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EPOCH, EPOCHS, BATCH = 6, 4, 4  # iterations an epoch; epochs in all, two a stage
AIMS = (
    'half a checkpoint',
    'before the rename',
    'before the pointer',
    'before the deletion',
    'half a stage',
    'breakpoint',
)
PRELOAD = ['mmpretrain.models', 'mmpretrain.datasets', 'mmpretrain.engine', 'mkd_plugin.models', 'mkd_plugin.engine']


@dataclass(frozen=True)
class Scenario:
    """How a run counts its progress and loads its data."""

    loop: str
    workers: int
    accumulate: int = 1

    def __str__(self) -> str:
        return f'{self.loop}-{self.workers}-workers-{self.accumulate}-accumulated'


# Four accumulated iterations do not divide an epoch of six: checkpoints due between two steps are postponed.
SCENARIOS = (
    Scenario('epochs', 0),
    Scenario('epochs', 2, 4),
    Scenario('iterations', 0, 2),
    Scenario('iterations', 2),
)


def build_config(scenario: Scenario, data: Path, work_dir: Path) -> Any:
    """A tiny dbot_digits with drop path that keeps one checkpoint, and persistent workers if there are any."""
    import mkd_plugin

    cfg = mkd_plugin.get_config('dbot/dbot_digits')
    cfg.work_dir, cfg.resume, cfg.log_level, cfg.visualizer = str(work_dir), True, 'ERROR', None
    cfg.model.backbone.update(arch=dict(width=16, depth=2, num_heads=2), patch_size=8, drop_path_rate=0.3)
    cfg.model.objectives.feature.head.update(depth=1, width=16, num_heads=2)
    cfg.train_dataloader.update(batch_size=BATCH, num_workers=scenario.workers)
    cfg.train_dataloader.persistent_workers = scenario.workers > 0
    cfg.train_dataloader.dataset.update(data_root=str(data), indices=BATCH * EPOCH)
    cfg.optim_wrapper.accumulative_counts = scenario.accumulate
    cfg.param_scheduler[0].end = cfg.param_scheduler[1].begin = 1
    cfg.param_scheduler[1].end = EPOCHS // 2
    cfg.train_cfg.max_epochs = EPOCHS
    cfg.default_hooks.checkpoint.update(interval=1, max_keep_ckpts=1)
    cfg.default_hooks.pop('curves')  # half a second each
    if scenario.loop == 'iterations':
        for entry in cfg.param_scheduler:
            entry.update(by_epoch=False, convert_to_iter_based=False, begin=entry.begin * EPOCH, end=entry.end * EPOCH)
        cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=EPOCHS * EPOCH)
        cfg.train_dataloader.sampler.type = 'InfiniteSampler'
        cfg.default_hooks.checkpoint.update(by_epoch=False, interval=3)
        cfg.log_processor = dict(by_epoch=False)
    return cfg


def train(scenario: Scenario, data: Path, work_dir: Path, aim: str | None, nth: int, progress: Any) -> None:
    """Train from scratch or resume; runs in its own process."""
    import torch
    from mmengine.hooks import Hook
    from mmengine.runner import Runner

    class Report(Hook):
        priority = 'LOWEST'

        def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
            progress.value += 1

    work_dir.mkdir(parents=True, exist_ok=True)
    log = os.open(work_dir / 'output.txt', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    runner = Runner.from_cfg(build_config(scenario, data, work_dir))
    runner.register_hook(Report())
    if aim is not None:
        kill_at(aim, nth)
    runner.train()


def kill_at(aim: str, nth: int) -> None:
    """Make this process kill itself when it reaches a certain line for the nth time."""
    from mmengine.fileio import LocalBackend

    from mkd_plugin.engine import AtomicCheckpointHook, checkpoints, teacher_updates

    left = [nth]

    def dies(function: Callable[..., Any], at: Callable[..., bool] = lambda *args: True) -> Callable[..., Any]:
        def replaced(*args: Any, **kwargs: Any) -> Any:
            left[0] -= at(*args)
            if left[0] <= 0:
                if function is put:
                    Path(args[2]).write_bytes(args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return replaced

    put = LocalBackend.put
    stage = aim == 'half a stage'
    owner, name, at = {
        'half a checkpoint': (LocalBackend, 'put', lambda self, data, path: 'stage' not in str(path)),
        'half a stage': (LocalBackend, 'put', lambda self, data, path: stage and 'stage' in str(path)),
        'before the rename': (checkpoints, 'move_into_place', lambda *args: True),
        'before the pointer': (checkpoints, 'point_to', lambda *args: True),
        'before the deletion': (AtomicCheckpointHook, '_forget', lambda self, steps: bool(steps)),
        'breakpoint': (teacher_updates, 'restart_schedule', lambda *args: True),
    }[aim]
    setattr(owner, name, dies(getattr(owner, name), at))


class KillTest:
    """Starts runs, kills them, and compares the results.

    Args:
        folder: Folder for the data and all runs.
        seed: Seed of the moments.
        report: Called with each line of progress.
    """

    def __init__(self, folder: Path, *, seed: int = 0, report: Callable[[str], Any] = print) -> None:
        from mkd_plugin.datasets import write_digits

        os.environ.update(OMP_NUM_THREADS='1')  # exact results need the same number of threads
        self.data, self.folder, self.report = write_digits(folder / 'digits'), folder, report
        self.random = random.Random(seed)
        self.context = multiprocessing.get_context('forkserver')  # imports once; every run is still its own process
        self.context.set_forkserver_preload([*PRELOAD, __name__])
        self.kills, self.aims = 0, self.random.sample(AIMS, len(AIMS))
        self.references: dict[Scenario, Path] = {}

    def start(self, scenario: Scenario, work_dir: Path, aim: str | None = None, nth: int = 1) -> tuple[Any, Any]:
        """Start a process that trains, and a shared count of the iterations it has begun."""
        progress = self.context.Value('i', 0)
        process = self.context.Process(target=train, args=(scenario, self.data, work_dir, aim, nth, progress))
        process.start()
        return process, progress

    def reference(self, scenario: Scenario) -> Path:
        """Work dir of an uninterrupted run without workers, which must not change the result."""
        plain = Scenario(scenario.loop, 0, scenario.accumulate)
        if plain not in self.references:
            work_dir = self.folder / f'whole-{plain}'
            process, _ = self.start(plain, work_dir)
            process.join()
            if process.exitcode != 0:
                raise RuntimeError(f'An uninterrupted run failed:\n{(work_dir / "output.txt").read_text()[-3000:]}')
            self.references[plain] = work_dir
        return self.references[plain]

    def one_run(self, scenario: Scenario, kills: int) -> None:
        """Kill a run up to this many times, let it finish, and compare."""
        reference, work_dir = self.reference(scenario), self.folder / f'killed-{scenario}-{self.kills}'
        for _ in range(kills):
            if not self.kill(scenario, work_dir):
                break
        process, _ = self.start(scenario, work_dir)
        process.join()
        if process.exitcode != 0:
            raise RuntimeError(f'A resumed run failed:\n{(work_dir / "output.txt").read_text()[-3000:]}')
        different = differences(reference, work_dir)
        if different:
            raise AssertionError(f'{work_dir} differs from {reference}: {different[:10]}')
        self.report(f'  {scenario}: the same weights, moments and stages after {self.kills} kills in all')
        shutil.rmtree(work_dir)

    def kill(self, scenario: Scenario, work_dir: Path) -> bool:
        """Start a run and kill it; False if it finished first."""
        aim = None
        if self.kills % 2:
            self.aims.append(self.aims.pop(0))
            aim = self.aims[-1]
        process, progress = self.start(scenario, work_dir, aim, nth=self.random.choice((1, 1, 2)))
        if aim is None:
            wanted = self.random.randrange(EPOCH * EPOCHS // 2)
            while progress.value < wanted and process.is_alive():
                time.sleep(0.001)
            time.sleep(self.random.random() * 0.03)
            process.kill()
        process.join()
        if process.exitcode == 0:
            return False
        if process.exitcode != -signal.SIGKILL:
            raise RuntimeError(f'A run failed before it was killed:\n{(work_dir / "output.txt").read_text()[-3000:]}')
        self.kills += 1
        self.report(f'{self.kills:4d}  {scenario}: {aim or "any moment"}, {progress.value} iterations after its start')
        return True

    def run(self, kills: int, *, per_run: int = 4) -> None:
        """Kill this many times in total, in turn over the scenarios."""
        turn = 0
        while self.kills < kills:
            self.one_run(SCENARIOS[turn % len(SCENARIOS)], min(per_run, kills - self.kills))
            turn += 1


def differences(whole: Path, resumed: Path) -> list[str]:
    """Names of the values that differ between the last checkpoints and the stages of two runs."""
    from mkd_plugin.checkpoint.read import read_checkpoint
    from mkd_plugin.engine.checkpoints import newest_checkpoint

    names = [Path(newest_checkpoint(whole) or '').name, *(path.name for path in sorted(whole.glob('stage_*.pth')))]
    different = []
    for name in names:
        ours, theirs = read_checkpoint(whole / name), read_checkpoint(resumed / name)
        for part in ('state_dict', 'optimizer', 'param_schedulers'):
            different += [f'{name} {part}{key}' for key in unequal(ours.get(part), theirs.get(part))]
    left = sorted(path.name for path in resumed.glob('*.tmp')) + [
        path.name for path in resumed.glob('*.pth') if not (whole / path.name).exists()
    ]
    return different + [f'{name} is left over' for name in left]


def unequal(a: Any, b: Any, name: str = '') -> list[str]:
    """Names of the values that differ in two nested structures."""
    import torch

    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [found for key in a for found in unequal(a[key], b[key], f'{name}.{key}')]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [found for key, pair in enumerate(zip(a, b, strict=True)) for found in unequal(*pair, f'{name}.{key}')]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b
    return [] if same else [name]


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=20, help='number of kills in total (default: 20)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the moments (default: 0)')
    parser.add_argument(
        '--folder', type=Path, help='folder for data and runs (default: a temporary one, deleted on success)'
    )
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix='kill_resume_'))
    began = time.monotonic()
    KillTest(folder, seed=args.seed).run(args.kills)
    print(f'{args.kills} kills survived in {time.monotonic() - began:.0f} s: bit-identical every time.')
    if args.folder is None:
        shutil.rmtree(folder)


if __name__ == '__main__':
    # import under its own name, so that other processes can unpickle its functions
    sys.path.insert(0, str(Path(__file__).parent))
    import kill_resume

    kill_resume.main()
