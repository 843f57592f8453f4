"""Measure what a ResNet gains from a trained ViT on digits, and write the table of docs/any_student.md.

    python projects/any_student/run.py [--work-dir DIR]      # all runs that are not finished
    python projects/any_student/run.py --report-only         # write the table again from its report.json

README.md beside this file has the rules. Runs go one at a time, on as many threads as OMP_NUM_THREADS says.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner
from rich.console import Console
from scipy.stats import t as student_t

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import mkd_plugin  # noqa: E402
from mkd_cli.command import run_resumable  # noqa: E402
from mkd_plugin.datasets import draw_labelled, write_digits  # noqa: E402
from mkd_plugin.reporting.experiment import Job, JobContext, run_jobs  # noqa: E402
from mkd_plugin.reporting.store import Store, key_of  # noqa: E402
from mkd_plugin.utils.files import write_whole  # noqa: E402

SEEDS, DRAWS, LABELS, EPOCHS = (0, 1, 2), (0, 1, 2), (2, 10), 35
STARTS = ('scratch', 'student')
PAGE = ROOT / 'docs/any_student.md'
BEGIN, END = '<!-- table: projects/any_student/run.py -->', '<!-- end of the table -->'
Score = dict[str, Any]  # seed, start, labels, draw, top1


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--digits', type=Path, default=Path('data/digits'), help='written if missing (default: %(default)s)')
    add('--work-dir', type=Path, default=Path('work_dirs/any_student'), help='results (default: %(default)s)')
    add(
        '--page',
        type=Path,
        default=PAGE,
        help='Markdown file (default: %(default)s)',
    )
    add('--report-only', action='store_true', help='write the table again from report.json')
    args = parser.parse_args()
    if args.report_only and not report_of(args.page).is_file():
        parser.error(f'there is no {report_of(args.page)}: run without --report-only first, or give another --page')
    return args


def report_of(page: Path) -> Path:
    """Return the file with the numbers of a page."""
    return page.with_suffix('') / 'report.json'


def pretraining(name: str, stages: int, seed: int, epochs: int) -> Config:
    """Return a digits config of ``epochs`` epochs a stage."""
    cfg = mkd_plugin.get_config(name)
    cfg.train_cfg.max_epochs = stages * epochs
    warm_up, decay = cfg.param_scheduler
    warm_up.end = decay.begin = min(warm_up.end, epochs // 2)
    decay.end = epochs
    return quiet(cfg, seed)


def quiet(cfg: Config, seed: int) -> Config:
    """Leave out what nobody looks at, and set the seed."""
    cfg.log_level, cfg.visualizer.vis_backends = 'ERROR', None
    cfg.default_hooks.progress.enabled = False
    del cfg.default_hooks['curves']
    cfg.randomness.seed = seed
    return cfg


def run(cfg: Config, context: JobContext) -> Runner:
    """Train, resuming an interrupted run."""
    cfg.work_dir, cfg.resume, cfg.experiment_name = str(context.work_dir), True, context.work_dir.name
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def pretrain(cfg: Config, root: Path, teacher: Path | None, context: JobContext) -> float:
    """Pre-train on unlabelled digits; return the last loss."""
    cfg.train_dataloader.dataset.data_root = str(root)
    if teacher is not None:
        cfg.model.teachers.teacher.update(checkpoint=str(teacher), seed=None)
    return float(run(cfg, context).message_hub.get_scalar('train/loss').current())


def finetune(cfg: Config, root: Path, labels: int, draw: int, student: Path | None, context: JobContext) -> float:
    """Fine-tune mmpretrain's ResNet; return its top-1 accuracy in per cent."""
    listed = draw_labelled(root, labels, draw)
    cfg.train_dataloader.dataset.update(data_root=str(root), ann_file=str(listed.relative_to(root)))
    cfg.val_dataloader.dataset.data_root = str(root)
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
    if student is not None:
        start = dict(type='Pretrained', checkpoint=str(student), prefix='backbone.network.')
        cfg.model.backbone.init_cfg = start
    return float(run(cfg, context).message_hub.get_scalar('val/accuracy/top1').current())


def jobs_of(root: Path, store: Store, *, epochs: int = EPOCHS) -> dict[tuple[int, str, int, int] | str, Job]:
    """Return all runs, teachers first."""
    jobs: dict[tuple[int, str, int, int] | str, Job] = {}

    def add(name: Any, cfg: Config, work: Any, *depends: Job) -> Job:
        title, keys = str(name), tuple(job.key for job in depends)
        jobs[name] = Job(title, key_of(title, config=cfg.to_dict(), depends=keys), work, keys, cost=1)
        return jobs[name]

    for seed in SEEDS:
        cfg = pretraining('dbot/dbot_digits', 2, seed, epochs)
        teacher = add(f'teacher {seed}', cfg, partial(pretrain, cfg, root, None))
        file = store.work_dir(teacher.key) / 'stage_2.pth'
        cfg = pretraining('any_student/resnet_digits', 1, seed, epochs)
        student = add(f'student {seed}', cfg, partial(pretrain, cfg, root, file), teacher)
        for start, labels, draw in ((s, n, d) for n in LABELS for d in DRAWS for s in STARTS):
            cfg = quiet(mkd_plugin.get_config('any_student/finetune/resnet-ft_digits'), 1000 + 10 * seed + draw)
            file = None if start == 'scratch' else store.work_dir(student.key) / f'epoch_{epochs}.pth'
            add((seed, start, labels, draw), cfg, partial(finetune, cfg, root, labels, draw, file), student)
    return jobs


def table(scores: list[Score]) -> str:
    """Return the table of the page: mean ± standard deviation over seeds of the mean over draws, and the verdict."""
    lines = [
        '| labels per class | scratch | student | difference (95 % interval) | beats scratch |',
        '|---|---|---|---|---|',
    ]
    for labels in LABELS:
        means = {start: [mean_of(scores, start, labels, seed) for seed in SEEDS] for start in STARTS}
        gains = [after - before for before, after in zip(*means.values(), strict=True)]
        reach = student_t.ppf(0.975, len(SEEDS) - 1) * stdev(gains) / len(SEEDS) ** 0.5
        won = min(gains) > 0 and fmean(gains) - reach > 0
        cells = [f'{fmean(values):.1f} ± {stdev(values):.1f}' for values in means.values()]
        gain = f'{fmean(gains):+.1f} ({fmean(gains) - reach:+.1f} … {fmean(gains) + reach:+.1f})'
        lines.append(f'| {labels} | {" | ".join(cells)} | {gain} | {"yes" if won else "no"} |')
    return '\n'.join(lines)


def mean_of(scores: list[Score], start: str, labels: int, seed: int) -> float:
    """Mean over the draws."""
    wanted = dict(start=start, labels=labels, seed=seed)
    return fmean(score['top1'] for score in scores if wanted.items() <= score.items())


def main() -> int:
    """Run or read the scores, and write the table; return the exit code."""
    args = parse_args()
    file = report_of(args.page)
    if not args.report_only:
        store = Store(args.work_dir)
        jobs = jobs_of(write_digits(args.digits).resolve(), store)
        outcome = run_jobs(list(jobs.values()), store, console=Console())
        if outcome.failures:
            return 1
        records = outcome.records
        scores = [
            dict(zip(('seed', 'start', 'labels', 'draw'), name, strict=True), top1=round(records[job.key].value, 2))
            for name, job in jobs.items()
            if isinstance(name, tuple)
        ]
        minutes = round(sum(record.seconds for record in records.values()) / 60, 1)
        file.parent.mkdir(parents=True, exist_ok=True)
        report = dict(version=mkd_plugin.__version__, minutes=minutes, scores=scores)
        write_whole(file, json.dumps(report, indent=1) + '\n')
    before, _, rest = args.page.read_text().partition(BEGIN)
    text = table(json.loads(file.read_text())['scores'])
    write_whole(args.page, f'{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}')
    return 0


if __name__ == '__main__':
    sys.exit(run_resumable(main))
