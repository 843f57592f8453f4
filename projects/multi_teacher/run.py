"""Compare a student of two teachers with students of either alone on digits, and write the table of docs/multi_teacher.md.

python projects/multi_teacher/run.py [--work-dir DIR]    # all runs that are not finished
python projects/multi_teacher/run.py --report-only       # write the table again from report.json
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.runner import Runner
from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import mkd_plugin  # noqa: E402
from mkd_cli.command import run_resumable  # noqa: E402
from mkd_plugin.checkpoint import load_backbone  # noqa: E402
from mkd_plugin.datasets import write_digits  # noqa: E402
from mkd_plugin.registry import MODELS  # noqa: E402
from mkd_plugin.reporting.experiment import Job, JobContext, run_jobs  # noqa: E402
from mkd_plugin.reporting.store import Store, key_of  # noqa: E402
from mkd_plugin.utils.files import write_whole  # noqa: E402
from projects.small_data import cells  # noqa: E402

TEACHERS = {name: cells.Cell('digits', 100, name, cells.LONG) for name in ('mae', 'dbot')}
SETTINGS = {'both': ('mae', 'dbot'), 'mae': ('mae',), 'dbot': ('dbot',)}
NAMES = {'both': 'student of both', 'mae': 'student of MAE', 'dbot': 'student of dBOT'}
STEPS, SEEDS = 1000, 3
MARK = '<!-- results -->', '<!-- end -->'

Scores = dict[str, list[float]]


def config_of(setting: str, seed: int, root: str, files: dict[str, str]) -> Config:
    """Return `radio_digits` with the objectives of the setting's teachers, and the images and length of the comparison."""
    cfg = cells.config_of(cells.Cell('digits', 100, 'mae', STEPS, seed=seed), dict(digits=root), None)
    model = mkd_plugin.get_config('multi_teacher/radio_digits').model
    chosen = SETTINGS[setting]
    model.teachers = {name: dict(model.teachers[name], checkpoint=files[name], seed=None) for name in chosen}
    model.objectives = {key: one for key, one in model.objectives.items() if one.teacher in chosen}
    cfg.model = model
    return cfg


def run_student(setting: str, seed: int, root: str, files: dict[str, str], context: JobContext) -> Scores:
    """Train a student, resuming an interrupted run, and measure it frozen."""
    cfg = config_of(setting, seed, root, files)
    cfg.work_dir, cfg.resume, cfg.experiment_name = str(context.work_dir), True, context.work_dir.name
    Runner.from_cfg(cfg).train()
    network = MODELS.build(cfg.model.backbone).eval()
    load_backbone(network, context.work_dir / f'iter_{STEPS}.pth')
    parts = (cells.features(network, cells.read_split('digits', split, root)) for split in ('train', 'test'))
    return cells.scores_of(*parts)


def jobs_of(root: str, store: Store) -> dict[tuple[str, int], Job]:
    """Return the teachers and students as jobs: ('teacher mae', 0) … ('both', 2)."""
    teachers = cells.jobs_of(list(TEACHERS.values()), dict(digits=root), store)
    keys = {name: teachers[cell].key for name, cell in TEACHERS.items()}
    files = {name: str(store.work_dir(key) / f'iter_{cells.LONG}.pth') for name, key in keys.items()}
    jobs = {(f'teacher {name}', 0): teachers[cell] for name, cell in TEACHERS.items()}
    for seed in range(SEEDS):
        for setting, used in SETTINGS.items():
            config = config_of(setting, seed, '', dict.fromkeys(TEACHERS, '')).to_dict()
            depends = tuple(keys[name] for name in used)
            key = key_of(f'{setting} seed {seed}', config=config, depends=depends)
            task = partial(run_student, setting, seed, root, files)
            jobs[setting, seed] = Job(f'{NAMES[setting]}, seed {seed}', key, task, depends, cost=STEPS * len(used))
    return jobs


def difference(one: list[list[float]], other: list[list[float]]) -> tuple[float, float, str]:
    """Compare scores [seed][draw] of two settings: mean, standard error, and the verdict of the page's rule."""
    paired_SK = np.array(one) - np.array(other)
    shares = [np.mean(one) / 100, np.mean(other) / 100]
    squares = [share * (1 - share) / cells.TESTED['digits'] * 1e4 for share in shares]
    squares += [
        values.var(ddof=1) / len(values) for values in (paired_SK.mean(0), paired_SK.mean(1)) if len(values) > 1
    ]
    mean, error = float(paired_SK.mean()), math.sqrt(sum(squares))
    return mean, error, 'better' if mean > 2 * error else 'worse' if mean < -2 * error else 'undecided'


def table(report: dict[str, Any]) -> str:
    """Return the page's part between the marks."""
    scores: dict[str, list[Scores]] = report['scores']
    head = ['', *cells.SCORES.values()]
    lines = [head, ['---'] * len(head)]
    for setting, found in scores.items():
        cell = []
        for name in cells.SCORES:
            means = [np.mean(one[name]) for one in found]
            spread = f' ± {np.std(means, ddof=1):.1f}' if len(means) > 1 else ''
            cell.append(f'{np.mean(means):.1f}{spread}')
        lines.append([NAMES.get(setting, setting.replace('mae', 'MAE').replace('dbot', 'dBOT')), *cell])
    text = ['Top-1 in per cent; ±: standard deviation over the seeds.', '', rows(lines), '']
    verdicts = [['difference in points', *cells.SCORES.values()], ['---'] * len(head)]
    for single in ('mae', 'dbot'):
        pairs = [[[one[name] for one in scores[key]] for key in ('both', single)] for name in cells.SCORES]
        found = [difference(*pair) for pair in pairs]
        line = [f'{mean:+.1f} ± {error:.1f} {verdict}' for mean, error, verdict in found]
        verdicts.append([f'both − {NAMES[single].removeprefix("student of ")} alone', *line])
    decided = [
        difference(*([one[cells.DECIDING] for one in scores[key]] for key in ('both', x)))[2] for x in ('mae', 'dbot')
    ]
    answer = (
        'better than each alone'
        if decided == ['better'] * 2
        else (
            'worse than each alone'
            if decided == ['worse'] * 2
            else f'{decided[0]} against MAE alone, {decided[1]} against dBOT alone'
        )
    )
    return '\n'.join([*text, rows(verdicts), '', f'By the rule, two teachers are **{answer}**.'])


def rows(lines: list[list[str]]) -> str:
    """Format a table of Markdown."""
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def write_page(report: dict[str, Any], page: Path) -> None:
    """Replace what is between the marks."""
    before, rest = page.read_text(encoding='utf-8').split(MARK[0])
    after = rest.split(MARK[1])[1]
    write_whole(page, f'{before}{MARK[0]}\n\n{table(report)}\n\n{MARK[1]}{after}')


def main() -> int:
    """Run or read the jobs, and write report and table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--digits', type=Path, default=Path('data/digits'), help='written if missing (default: %(default)s)'
    )
    parser.add_argument(
        '--work-dir', type=Path, default=Path('work_dirs/multi_teacher'), help='results (default: %(default)s)'
    )
    parser.add_argument(
        '--page',
        type=Path,
        default=ROOT / 'docs/multi_teacher.md',
        help='Markdown file (default: %(default)s)',
    )
    parser.add_argument('--report-only', action='store_true', help='write the table again from report.json')
    args = parser.parse_args()
    file = args.page.with_suffix('') / 'report.json'
    if args.report_only and not file.is_file():
        parser.error(f'there is no {file}: run without --report-only first, or give another --page')
    if not args.report_only:
        store = Store(args.work_dir)
        jobs = jobs_of(str(write_digits(args.digits).resolve()), store)
        outcome = run_jobs(list(jobs.values()), store, console=Console())
        if outcome.failures:
            return 1
        scores: dict[str, list[Scores]] = {}
        for (setting, _), job in jobs.items():
            found = outcome.records[job.key].value
            scores.setdefault(setting, []).append({key: [round(x, 2) for x in found[key]] for key in cells.SCORES})
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(dict(version=mkd_plugin.__version__, scores=scores), indent=1) + '\n')
    write_page(json.loads(file.read_text()), args.page)
    return 0


if __name__ == '__main__':
    sys.exit(run_resumable(main))
