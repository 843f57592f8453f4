"""Measure training on a GPU in one call of at most ten minutes, and write a line of JSON for each result.

    python benchmarks/gpu_benchmark.py [--out FILE] [--official FOLDER] [--sections NAME ...] [--minutes 9.6]
    python benchmarks/gpu_benchmark.py --tiny                  (all of it with tiny networks, on a CPU: seconds)
    python benchmarks/gpu_benchmark.py --report FILE           (the tables of a finished run)

FOLDER is a checkout of dBOT's official code, https://github.com/liuxingbin/dbot. Needs PyTorch, mkd_plugin's hosts and nothing
from a network; ``tools/gpu_wheels.sh`` collects what a bare machine lacks.

Sections run in a process of their own, which writes to FILE and logs to FILE.log. A row that fails is written as an error and
the next one runs. A section that crashes the process or exceeds its time is given up, and a new process starts with the next.
If FILE exists, it is renamed.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Section → its module and the seconds after which it starts no further row; they sum up to 500. The rest of the ten minutes
# is for importing twice, and for the last rows of sections.
SECTIONS = {
    'smoke': ('gpu_benchmark_checks', 10),
    'ceilings': ('gpu_benchmark_device', 25),
    'correctness': ('gpu_benchmark_checks', 35),
    'step': ('gpu_benchmark_steps', 150),
    'official': ('gpu_benchmark_steps', 55),
    'profile': ('gpu_benchmark_device', 35),
    'memory': ('gpu_benchmark_device', 55),
    'run': ('gpu_benchmark_runs', 50),
    'pipeline': ('gpu_benchmark_runs', 45),
    'resume': ('gpu_benchmark_runs', 40),
}
GRACE = 20.0  # seconds that the last row of a section may take longer
# Deterministic kernels, which resuming is tested with, need this before the first matrix product.
ENVIRONMENT = {'resume': {'CUBLAS_WORKSPACE_CONFIG': ':4096:8'}}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the finished lines of a file of JSON lines."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith('\n')]


def write_line(path: Path, line: dict[str, Any]) -> None:
    """Append a line, so that it is on disk if the next row crashes."""
    with path.open('a') as file:
        file.write(json.dumps(line) + '\n')
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def noted(out: Path, section: str) -> Iterator[None]:
    """Write when a section begins and ends; an error ends it and is written."""
    from gpu_benchmark_steps import device_works

    write_line(out, dict(section=section, event='begin'))
    start = time.monotonic()
    try:
        yield
    except Exception as error:
        write_line(out, dict(section=section, error=f'{type(error).__name__}: {error}'[:500]))
        if not device_works():  # nothing runs in this process any more
            os._exit(3)
    write_line(out, dict(section=section, event='end', took=round(time.monotonic() - start, 1)))


def work(args: argparse.Namespace) -> None:
    """Run sections one after the other, in the process that measures."""
    from gpu_benchmark_steps import Setup

    modules = {name: import_module(SECTIONS[name][0]) for name in args.sections}
    gc.freeze()  # collecting garbage after each row then takes no time
    for name in args.sections:
        with noted(args.out, name):
            setup = Setup.of(args, args.folder, time.monotonic() + SECTIONS[name][1])
            for row in getattr(modules[name], name)(setup):
                write_line(args.out, dict(section=name, **row))


class Supervisor:
    """Starts the processes that measure, prints their results, and ends those that exceed their time."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.end = time.monotonic() + 60 * args.minutes
        self.printed = 0

    def run(self) -> None:
        """Run all sections, or as many as there is time for."""
        left = list(self.args.sections)
        while left and time.monotonic() < self.end:
            together = [left[0]]
            for name in left[1:]:
                if not self.args.tiny and ENVIRONMENT.get(name) != ENVIRONMENT.get(left[0]):
                    break
                together.append(name)
            self._run_process(together)
            left = [name for name in left if name not in self._begun()]
        for name in left:
            write_line(self.args.out, dict(section=name, error='not begun: there was no time left'))
        self._print_new()

    def _begun(self) -> list[str]:
        return [line['section'] for line in read_lines(self.args.out) if line.get('event') == 'begin']

    def _run_process(self, sections: list[str]) -> None:
        """Run sections in one process until they are done or one fails; the first is marked as begun in any case."""
        with TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # here, because the process may be killed
            earlier = len(self._begun())
            reason = self._watch(self._start(sections, folder), earlier)
        begun = self._begun()[earlier:]
        if sections[0] not in begun:  # it could not even be imported
            write_line(self.args.out, dict(section=sections[0], event='begin'))
            begun.append(sections[0])
        if reason:
            write_line(self.args.out, dict(section=begun[-1], error=f'{reason}; see {self.args.out}.log'))

    def _start(self, sections: list[str], folder: str) -> subprocess.Popen[bytes]:
        """Start a process that measures, and keeps temporary files in ``folder``."""
        options = ['--worker', '--folder', folder, '--out', str(self.args.out), '--sections', *sections]
        options += ['--tiny'] if self.args.tiny else ['--batch-size', str(self.args.batch_size)]
        options += ['--official', str(self.args.official)] if self.args.official else []
        environment = {**os.environ, **({} if self.args.tiny else ENVIRONMENT.get(sections[0], {}))}
        environment['PYTHONPATH'] = os.pathsep.join([str(ROOT), str(ROOT / 'tests'), os.environ.get('PYTHONPATH', '')])
        with Path(f'{self.args.out}.log').open('a') as log:
            command = [sys.executable, str(Path(__file__).resolve()), *options]
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def _watch(self, process: subprocess.Popen[bytes], earlier: int) -> str:
        """Wait for a process, before which this many sections had begun; return why it did not finish, or nothing."""
        current, since = '', time.monotonic()
        while process.poll() is None:
            time.sleep(0.2)
            self._print_new()
            begun = self._begun()[earlier:]
            if begun and begun[-1] != current:
                current, since = begun[-1], time.monotonic()
            allowed = SECTIONS[current][1] + GRACE if current else 90.0
            if time.monotonic() > min(self.end, since + allowed):
                process.kill()
                process.wait()
                return f'ended after {time.monotonic() - since:.0f} s'
        return '' if process.returncode == 0 else f'the process ended with code {process.returncode}'

    def _print_new(self) -> None:
        lines = read_lines(self.args.out)
        for line in lines[self.printed :]:
            print(json.dumps({key: value for key, value in line.items() if key != 'top'}), flush=True)
        self.printed = len(lines)


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/gpu_benchmark.jsonl'), help='file of the results')
    parser.add_argument('--official', type=Path, metavar='FOLDER', help="a checkout of dBOT's official code")
    parser.add_argument('--sections', nargs='+', choices=list(SECTIONS), default=list(SECTIONS), metavar='NAME')
    parser.add_argument('--batch-size', type=int, default=512, help='images of a step (default: 512)')
    parser.add_argument('--minutes', type=float, default=9.6, help='for all sections together (default: 9.6)')
    parser.add_argument('--tiny', action='store_true', help='tiny networks on a CPU: tests the benchmark itself')
    parser.add_argument('--report', type=Path, metavar='FILE', help='print the tables of this file and run nothing')
    parser.add_argument('--worker', action='store_true', help=argparse.SUPPRESS)
    parser.add_argument('--folder', type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.report is not None and not args.report.is_file():
        parser.error(f'--report {args.report}: there is no such file.')
    return args


def prepare(out: Path) -> None:
    """Make room for results: earlier ones are renamed by their time, and their log is deleted."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists():
        written = time.strftime('%Y%m%d-%H%M%S', time.localtime(out.stat().st_mtime))
        out.rename(f'{out}.{written}')
    Path(f'{out}.log').unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sections and print the tables; return 1 if anything failed or is wrong."""
    args = parse_args(arguments)
    if args.worker:
        work(args)
        return 0
    if args.report is None:
        args.out = args.out.resolve()
        prepare(args.out)
        Supervisor(args).run()
    from gpu_benchmark_report import tables

    lines = read_lines(args.report or args.out)
    print(tables(lines))
    bad = ('error' in line or line.get('within') is False or line.get('works') is False for line in lines)
    return int(not lines or any(bad))


if __name__ == '__main__':
    raise SystemExit(main())
