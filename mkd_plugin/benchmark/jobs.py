"""The trainings of a benchmark: the command of each, the key it is known by, and how it is run."""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mkd_plugin.benchmark.scores import final_scores
from mkd_plugin.benchmark.settings import Settings, Start
from mkd_plugin.benchmark.suites import Suite
from mkd_plugin.engine.metrics import METRICS, read_metrics
from mkd_plugin.preflight.config import add_shared_arguments, load_config
from mkd_plugin.utils.configs import config_root
from mkd_plugin.utils.files import write_whole
from mkd_plugin.version import __version__

LAYOUT = 1  # of a result; raised when what is kept of a training changes
DONE, SPENT, LOG, LOCK = 'done.json', 'seconds.json', 'log.txt', 'lock'
LAST_LINES = 15
REQUEUE = 85  # a trainer's "my state is saved, start me again"


@dataclass(frozen=True)
class Job:
    """A training."""

    task: str
    start: str
    seed: int

    def __str__(self) -> str:
        return f'{self.task} from {self.start}, seed {self.seed}'


@dataclass(frozen=True)
class Failure:
    """Why a job has no result.

    Attributes:
        reason: In a sentence.
        log: The file with all of it.
        lines: Its last ones.
    """

    reason: str
    log: str
    lines: tuple[str, ...] = ()

    def __str__(self) -> str:
        return '\n'.join([f'FAILED: {self.reason} ({self.log})', *(f'    {line}' for line in self.lines)])


class Trainings:
    """All trainings of a benchmark. Each has a folder, named by its key: results of other settings are never taken.

    Args:
        suite: The tasks.
        starts: Name → what to start from.
        settings: Options, processes, jobs at a time.
        folder: Of the benchmark.
    """

    def __init__(self, suite: Suite, starts: dict[str, Start], settings: Settings, folder: Path) -> None:
        self.suite, self.starts, self.settings, self.folder = suite, starts, settings, folder.resolve()
        self.failed: dict[Job, Failure] = {}
        self.running: set[subprocess.Popen[bytes]] = set()
        self.stopping = False
        self.guard = threading.Lock()
        # reading a host's bases takes seconds
        self._configs: dict[Path, Config] = {}
        self._texts: dict[Path, str] = {}
        self._keys: dict[Job, str] = {}

    def file(self, job: Job) -> Path:
        """Its config."""
        task = self.suite.tasks[job.task]
        return task.scratch if task.scratch and self.starts[job.start].path is None else task.config

    def config(self, job: Job) -> Config:
        """Its config with the options, as tools/train.py will have it, but for start and seed."""
        file = self.file(job)
        if file not in self._configs:
            parser = argparse.ArgumentParser()
            add_shared_arguments(parser)
            options = self.settings.options_of(job.task)
            words = [str(file), *(['--cfg-options', *options] if options else [])]
            self._configs[file] = load_config(parser.parse_args(words))
        return self._configs[file]

    def plan(self, tasks: list[str]) -> list[Job]:
        """Every training, seed by seed: what is compared is there as early as can be."""
        return [Job(task, start, seed) for seed in range(self.suite.seeds) for task in tasks for start in self.starts]

    def options(self, job: Job) -> list[str]:
        """What its config is changed by."""
        path, part = self.starts[job.start].path, 'model.backbone.init_cfg'
        init = [f'{part}.checkpoint={path}'] if path else [f'{part}=None']
        if path and not self.config(job).model.backbone.get('init_cfg'):
            init += [f'{part}.type=Pretrained', f'{part}.prefix=backbone.']
        return [*init, f'randomness.seed={job.seed}', *self.settings.options_of(job.task)]

    def command(self, job: Job) -> list[str]:
        """The command line, which does the same when typed."""
        tools, config = config_root().parent / 'tools', str(self.file(job))
        first = [sys.executable, str(tools / 'train.py'), config]
        if self.settings.processes > 1:
            first = ['bash', str(tools / 'dist_train.sh'), config, str(self.settings.processes)]
        return [*first, '--work-dir', str(self.place(job)), '--resume', '--cfg-options', *self.options(job)]

    def key(self, job: Job) -> str:
        """A digest of config, checkpoint, seed, options, data and version; of paths only what lies there counts."""
        if job not in self._keys:
            stamp = self.suite.stamp
            content = dict(
                layout=LAYOUT,
                version=__version__,
                config=self.text(self.file(job)),
                options=self.settings.options_of(job.task),
                start=self.starts[job.start].sha256,
                seed=job.seed,
                processes=self.settings.processes,
                data=stamp.read_text() if stamp and stamp.is_file() else None,
            )
            text = json.dumps(content, sort_keys=True)
            start = (self.starts[job.start].sha256 or job.start)[:8]
            digest = hashlib.sha256(text.encode()).hexdigest()[:16]
            self._keys[job] = f'{job.task}-{start}-seed{job.seed}-{digest}'
        return self._keys[job]

    def text(self, file: Path) -> str:
        """A config with all that it inherits, the same for the same content."""
        if file not in self._texts:
            self._texts[file] = json.dumps(Config.fromfile(file).to_dict(), sort_keys=True, default=str)
        return self._texts[file]

    def place(self, job: Job) -> Path:
        """Its work dir."""
        return self.folder / 'jobs' / self.key(job)

    def result(self, job: Job) -> dict[str, Any] | None:
        """``scores``, ``seconds``, ``iterations`` of a finished training; None if it is not finished."""
        file = self.place(job) / DONE
        return dict(json.loads(file.read_text())) if file.is_file() else None

    def outcome(self, job: Job) -> str:
        """What is said when it ends."""
        if job in self.failed:
            return str(self.failed[job])
        result = self.result(job)
        if result is None:
            return 'interrupted'
        scores = [
            f'{metric.label} {result["scores"][metric.label]:.1f}' for metric in self.suite.tasks[job.task].metrics
        ]
        return f'{", ".join(scores)} ({result["seconds"] / 60:.1f} minutes)'

    # What the pool asks.

    def needs(self, job: Job) -> list[Job]:
        """No training waits for another."""
        return []

    def steps(self, job: Job) -> float:
        """Minutes it takes: those of the task's finished ones here, or else the suite's guess."""
        others = [self.result(Job(job.task, start, seed)) for start in self.starts for seed in range(self.suite.seeds)]
        known = [other['seconds'] / 60 for other in others if other]
        return sum(known) / len(known) if known else self.suite.tasks[job.task].minutes

    def part(self, job: Job) -> float:
        """How much of it is done."""
        rows, loop = self.rows(job), self.config(job).train_cfg
        if not rows:
            return 0.0
        if loop.get('max_epochs'):
            return min(1.0, rows[-1].get('epoch', 0) / loop['max_epochs'])
        return min(1.0, rows[-1]['iter'] / loop['max_iters'])

    def rows(self, job: Job) -> list[dict[str, Any]]:
        """Its lines of ``metrics.jsonl``."""
        file = self.place(job) / METRICS
        return read_metrics(file) if file.is_file() else []

    def do(self, job: Job) -> None:
        """Train to the end, from where it was interrupted if it was. What goes wrong is kept in ``failed``."""
        folder = self.place(job)
        folder.mkdir(parents=True, exist_ok=True)
        with only_one(folder / LOCK) as lock:
            if lock is None:
                self.failed[job] = Failure(
                    'another process is training it: another benchmark, or a training that outlived one',
                    str(folder / LOG),
                )
                return
            if self.result(job) is not None:  # done by another benchmark in the meantime
                return
            began = time.monotonic()
            code = self.train(job, lock)
            spent = folder / SPENT
            seconds = time.monotonic() - began + (json.loads(spent.read_text()) if spent.is_file() else 0.0)
            write_whole(spent, json.dumps(seconds))
            if code == 0:
                self.finish(job, seconds)
            elif code is not None and not self.stopping:
                self.fail(job, f'exit code {code}' if code != REQUEUE else 'it was told to save its state and stop')

    def train(self, job: Job, lock: int) -> int | None:
        """Run the command; its exit code, or None if nothing is to begin any more."""
        with (self.place(job) / LOG).open('ab') as log:
            with self.guard:
                if self.stopping:
                    return None
                process = subprocess.Popen(
                    self.command(job),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self.environment(),
                    start_new_session=True,  # Ctrl-C reaches it through ``stop``, as the signal upon which it saves
                    pass_fds=[lock],  # held for as long as it lives, also without us
                )
                self.running.add(process)
            code = process.wait()
            self.running.discard(process)
        return code

    def environment(self) -> dict[str, str]:
        """Of a trainer: this checkout, and its share of the cores unless the user says how many threads."""
        path = os.pathsep.join(filter(None, [str(config_root().parent), os.environ.get('PYTHONPATH')]))
        threads = max(1, (os.cpu_count() or 1) // (self.settings.jobs * self.settings.processes))
        return {'OMP_NUM_THREADS': str(threads), **os.environ, 'PYTHONPATH': path, 'PYTHON': sys.executable}

    def finish(self, job: Job, seconds: float) -> None:
        """Keep the scores."""
        rows, metrics = self.rows(job), self.suite.tasks[job.task].metrics
        try:
            scores = final_scores(rows, metrics)
        except ValueError as error:
            self.fail(job, str(error))
            return
        result = dict(scores=scores, iterations=rows[-1]['iter'], seconds=round(seconds, 1))
        write_whole(self.place(job) / DONE, json.dumps(result) + '\n')

    def fail(self, job: Job, reason: str) -> None:
        """Keep the reason and the log's end."""
        log = self.place(job) / LOG
        lines = [line for line in log.read_text(errors='replace').splitlines() if line.strip()]
        self.failed[job] = Failure(reason, str(log), tuple(lines[-LAST_LINES:]))

    def stop(self, *, kill: bool = False) -> None:
        """Let every running training save its state and end, and begin no other."""
        with self.guard:
            self.stopping = True
            for process in list(self.running):
                process.kill() if kill else process.terminate()


@contextmanager
def only_one(path: Path) -> Iterator[int | None]:
    """A lock that is free again when every process that has it is gone: a descriptor, or None if it is taken."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield descriptor
    finally:
        os.close(descriptor)
