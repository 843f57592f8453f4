"""Kill training runs with SIGKILL, resume them, and compare them bit for bit with an uninterrupted run.

    python benchmarks/kill_resume.py --kills 200 [--minutes 45] [--seed 0] [--folder DIR] [--only TEXT]

Half of the kills come at a random moment, the others at the most dangerous ones (`AIMS`): while a checkpoint is written,
between two steps of replacing it, in the middle of a change of stage. The runs are those of kill_scenarios.py: a tiny dBOT in
two stages, a detector and a segmentor, by epochs and by iterations, with 0 and 2 workers, in one and in two processes.

DIR/kill_resume.json holds the results. The same command goes on where it was stopped, with the uninterrupted runs that are
there already. If two runs differ, the program exits with code 1 and keeps both.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == '__main__':
    sys.path[:0] = [str(ROOT / name) for name in ('', 'tests', 'benchmarks')]

from kill_scenarios import (  # noqa: E402, F401 - some for the tests
    AIMS,
    BATCH,
    CHECKPOINT_AIMS,
    DBOT,
    EPOCH,
    EPOCHS,
    MODULES,
    SCENARIOS,
    Moment,
    Scenario,
    build_config,
    train,
    write_data,
)

ANY = 'any moment'
PER_RUN = 4  # kills of one run
RESULTS = 'kill_resume.json'


class KillTest:
    """Starts runs, kills them, and compares the results.

    Args:
        folder: Folder for the data, all runs and the results.
        seed: Seed of the moments.
        scenarios: What is run, in turn.
        report: Called with each line of progress.

    Raises:
        ValueError: The folder was begun with another version of the package, or with another seed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seed: int = 0,
        scenarios: Sequence[Scenario] = SCENARIOS,
        report: Callable[[str], Any] = print,
    ) -> None:
        os.environ.update(OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')  # what exact results need
        self.folder, self.seed, self.scenarios, self.report = folder, seed, scenarios, report
        folder.mkdir(parents=True, exist_ok=True)
        self.context = multiprocessing.get_context('forkserver')  # imports once; every run is still its own process
        modules = [name for model in dict.fromkeys(['dbot', *(s.model for s in scenarios)]) for name in MODULES[model]]
        self.context.set_forkserver_preload([*modules, train.__module__])
        self.configs: dict[Scenario, Any] = {}
        identity = dict(seed=seed, code=digest_of_code())
        self.results: dict[str, Any] = {**identity, 'runs': []}
        self.references: dict[str, float] = {}  # seconds of each uninterrupted run
        if (folder / RESULTS).is_file():
            self.results = json.loads((folder / RESULTS).read_text())
            if {name: self.results[name] for name in identity} != identity:
                raise ValueError(
                    f'{folder} was begun with other code or another seed. Give another --folder, or delete it.'
                )
            self.references = self.results['references']
        self.kills = sum(run['kills'] for run in self.results['runs'])
        self.random, self.aims = random.Random(f'{seed} {self.kills}'), list(AIMS)
        self.random.shuffle(self.aims)
        self.where: list[str] = []  # moments of the kills of the present run
        self.began, self.before, self.wanted = time.monotonic(), self.kills, self.kills

    def start(self, scenario: Scenario, work_dir: Path, moment: Moment | None = None) -> tuple[list[Any], Any]:
        """Start the processes of a run, and a shared count of the iterations that the first has begun."""
        if scenario not in self.configs:
            self.configs[scenario] = build_config(scenario, write_data(scenario.model, self.folder), work_dir)
        cfg = self.configs[scenario]
        cfg.work_dir = str(work_dir)
        progress, port = self.context.Value('i', 0), free_port()
        processes = [
            self.context.Process(target=train, args=(cfg, moment if rank == 0 else None, rank, port, progress))
            for rank in range(scenario.ranks)
        ]
        for process in processes:
            process.start()
        return processes, progress

    def finish(self, scenario: Scenario, work_dir: Path) -> None:
        """Run to the end. Raises RuntimeError if the run fails."""
        processes, _ = self.start(scenario, work_dir)
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise RuntimeError(f'A run failed:\n{(work_dir / "output.txt").read_text()[-3000:]}')

    def reference(self, scenario: Scenario) -> Path:
        """Work dir of an uninterrupted run without workers, which must not change the result."""
        plain = Scenario(scenario.loop, 0, scenario.accumulate, scenario.ranks, scenario.model)
        work_dir = self.folder / f'whole-{plain}'
        if str(plain) not in self.references:
            shutil.rmtree(work_dir, ignore_errors=True)
            began = time.monotonic()
            self.finish(plain, work_dir)
            self.references[str(plain)] = round(time.monotonic() - began, 1)
        return work_dir

    def one_run(self, scenario: Scenario, kills: int) -> None:
        """Kill a run up to this many times, let it finish, and compare."""
        reference, work_dir = self.reference(scenario), self.folder / f'killed-{scenario}-{self.kills}'
        shutil.rmtree(work_dir, ignore_errors=True)
        began, self.where = time.monotonic(), []
        for _ in range(kills):
            if not self.kill(scenario, work_dir):
                break
        self.finish(scenario, work_dir)
        different = differences(reference, work_dir)
        if different:
            raise AssertionError(f'{work_dir} differs from {reference}: {different[:10]}')
        self.report(f'      {scenario}: the same weights, moments and stages after {self.kills} kills in all')
        shutil.rmtree(work_dir)
        seconds = round(time.monotonic() - began, 1)
        self.results['runs'].append(dict(scenario=str(scenario), kills=len(self.where), seconds=seconds, at=self.where))
        text = json.dumps({**self.results, 'kills': self.kills, 'references': self.references}, indent=1)
        (self.folder / RESULTS).write_text(text + '\n')

    def kill(self, scenario: Scenario, work_dir: Path) -> bool:
        """Start a run and kill it; False if it finished first."""
        moment, victim = None, 0
        if self.kills % 2:
            known = AIMS if scenario.model == 'dbot' else CHECKPOINT_AIMS
            aim = next(aim for aim in self.aims if aim in known)
            self.aims.remove(aim)
            self.aims.append(aim)
            moment = Moment(aim, self.random.choice((1, 1, 2)), self.random.random())
        processes, progress = self.start(scenario, work_dir, moment)
        if moment is None:
            victim = self.random.randrange(scenario.ranks)
            wanted = self.random.randrange(scenario.iterations // 2)
            while progress.value < wanted and processes[victim].is_alive():
                time.sleep(0.001)
            time.sleep(self.random.random() * 0.03)
            processes[victim].kill()
        processes[victim].join()
        for process in processes:  # as a launcher or scheduler ends what is left of a job
            process.join(self.random.random() * 0.3)
            process.kill()
            process.join()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        code = processes[victim].exitcode
        if code not in (0, -signal.SIGKILL):
            raise RuntimeError(f'A run failed before it was killed:\n{(work_dir / "output.txt").read_text()[-3000:]}')
        if code == 0:
            return False
        self.kills += 1
        self.where.append(moment.aim if moment else ANY)
        self.report(f'{self.forecast()}  {scenario}: {self.where[-1]}, {progress.value} iterations after its start')
        return True

    def forecast(self) -> str:
        """How many kills are done, and how long the rest will take."""
        each = (time.monotonic() - self.began) / max(1, self.kills - self.before)
        left = each * max(0, self.wanted - self.kills) / 60
        return f'{self.kills:4d}/{self.wanted} about {left:.0f} min left'

    def run(self, kills: int, *, minutes: float = float('inf'), per_run: int = PER_RUN) -> None:
        """Kill until this many kills are done in total, in turn over the scenarios, or until the time is over."""
        self.began, self.before, self.wanted = time.monotonic(), self.kills, kills
        turn = len(self.results['runs'])
        while self.kills < kills and time.monotonic() - self.began < 60 * minutes:
            self.one_run(self.scenarios[turn % len(self.scenarios)], min(per_run, kills - self.kills))
            turn += 1

    def table(self) -> str:
        """Kills, runs and seconds of each scenario, and the moments of all kills."""
        runs, lines = self.results['runs'], [f'{"scenario":58}{"runs":>6}{"kills":>7}{"seconds":>9}{"a kill":>8}']
        for name in dict.fromkeys(run['scenario'] for run in runs):
            own = [run for run in runs if run['scenario'] == name]
            kills, seconds = sum(run['kills'] for run in own), sum(run['seconds'] for run in own)
            lines.append(f'{name:58}{len(own):6}{kills:7}{seconds:9.1f}{seconds / max(1, kills):8.1f}')
        lines.append(f'{"uninterrupted runs":58}{len(self.references):6}{"":7}{sum(self.references.values()):9.1f}')
        moments = Counter(aim for run in runs for aim in run['at'])
        return '\n'.join([*lines, ', '.join(f'{aim}: {count}' for aim, count in moments.most_common())])


def free_port() -> int:
    """A port that nothing uses."""
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return int(found.getsockname()[1])


def digest_of_code() -> str:
    """SHA-256 of the package, the configs and the scenarios: with other code, runs must be made anew."""
    paths = [
        *(ROOT / 'mkd_plugin').rglob('*.py'),
        *(ROOT / 'configs').rglob('*.py'),
        *Path(__file__).parent.glob('kill*.py'),
    ]
    return hashlib.sha256(b''.join(path.read_bytes() for path in sorted(paths))).hexdigest()


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


def main() -> int:
    """Read the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=20, help='number of kills in total (default: 20)')
    parser.add_argument(
        '--minutes', type=float, default=float('inf'), help='begin no run after this time (default: none)'
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of the moments (default: 0)')
    parser.add_argument('--only', default='', help='only the scenarios whose names contain this, such as detector')
    parser.add_argument(
        '--folder',
        type=Path,
        default=Path('work_dirs/kill_resume'),
        help='data, runs and results (default: %(default)s)',
    )
    args = parser.parse_args()
    scenarios = [scenario for scenario in SCENARIOS if args.only in str(scenario)]
    if not scenarios:
        parser.error(f'--only {args.only}: the scenarios are {", ".join(map(str, SCENARIOS))}')
    try:
        test = KillTest(args.folder, seed=args.seed, scenarios=scenarios)
    except ValueError as error:
        parser.error(str(error))
    test.run(args.kills, minutes=args.minutes)
    print(test.table())
    print(f'{test.kills} kills survived, bit-identical every time. {args.folder / RESULTS}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
