"""Fine-tuning over several learning rates or numbers of frozen blocks: one training per value, starting weights and seed."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

from mmengine.config import Config
from rich.console import Console
from rich.table import Table

from mkd_plugin.checkpoint.read import read_checkpoint
from mkd_plugin.engine.provenance import software
from mkd_plugin.preflight.checks import check_data, check_work_dir
from mkd_plugin.preflight.config import load_config, read_config
from mkd_plugin.preflight.rehearsal import check_runner_options, rehearse
from mkd_plugin.reporting.benchmark.jobs import Trainings
from mkd_plugin.reporting.benchmark.page import cell
from mkd_plugin.reporting.benchmark.results import summarize
from mkd_plugin.reporting.benchmark.suites import SCRATCH, TASKS, Settings, Suite, Task, read_starts
from mkd_plugin.reporting.experiment import run_jobs
from mkd_plugin.reporting.figures import sweep_figure
from mkd_plugin.utils.files import plain, write_whole
from mkd_plugin.version import __version__

# Option → label of the axis.
AXES = {'rates': 'learning rate', 'frozen': 'frozen blocks'}
DPI = 150


def configs_of(cfg: Config, option: str, values: Sequence[float]) -> dict[float, Config]:
    """One fine-tuning config per peak learning rate ('rates') or number of frozen first blocks ('frozen').

    Layer-wise decay and schedule scale with the rate; the embeddings are frozen with the first block. Raises ValueError for
    repeated values, and for rates that are not positive.
    """
    if len(set(values)) < len(values):
        raise ValueError(f'--{option} {" ".join(map(str, values))}: give each value once.')
    if option == 'rates' and not all(0 < rate < inf for rate in values):
        raise ValueError(f'--rates {" ".join(map(str, values))}: learning rates must be positive.')
    runs = {value: copy.deepcopy(cfg) for value in values}
    for value, run in runs.items():
        if option == 'rates':
            run.optim_wrapper.optimizer.lr = value
        elif value:
            run.custom_hooks = [*(run.get('custom_hooks') or []), dict(type='mkd_plugin.FreezeHook', blocks=value)]
            run.find_unused_parameters = True  # for DDP, which is set up before blocks are frozen
    return runs


def sweep(
    config: str,
    option: str,
    values: Sequence[float],
    starts: Sequence[str],
    *,
    settings: Settings,
    options: Mapping[str, Any],
    out: Path,
    command: str,
    console: Console,
) -> dict[str, Any]:
    """Fine-tune once per value of ``option`` (a key of ``AXES``), start and seed; finished trainings are not repeated.

    ``starts`` are ``[NAME=]FILE`` or 'scratch', by default the config's own checkpoint or else random weights. ``options``
    change the config; of the ``settings``, seeds, processes and jobs count. Writes ``sweep.json``, and ``sweep.png`` if a
    training has finished; prints the table, and returns what the JSON file holds.

    Raises:
        ValueError: A config, value or checkpoint cannot be used. Nothing has been written then.
        KeyboardInterrupt: Interrupted by Ctrl-C or SIGTERM. The trainings have saved their state; rerun to resume.
    """
    task, own = check_config(config, load_config(config, options=options), option, values)
    named = starts or [own or SCRATCH]
    begun = read_starts([text for text in named if text != SCRATCH], SCRATCH if SCRATCH in named else None)
    for start in begun.values():
        if start.path:
            read_checkpoint(start.path, lazy=True)  # raises if it is none
    check_work_dir(out)
    tasks = {}
    for value, run in configs_of(read_config(config, options), option, values).items():
        file = out / 'configs' / f'{option}_{value}.py'
        file.parent.mkdir(parents=True, exist_ok=True)
        run.dump(file)
        tasks[f'{option}={value}'] = Task(task, file)
    trainings = Trainings(Suite(tasks, settings.seeds or 1), begun, settings, out)
    jobs = {training: trainings.job(training) for training in trainings.plan(list(tasks))}
    outcome = run_jobs(
        list(jobs.values()),
        trainings.store,
        console=console,
        workers=settings.jobs,
        backend='threads',
        describe=trainings.describe,
    )
    metric = TASKS[task].metrics[0].label
    scores: dict[str, dict[str, dict[int, float]]] = {start: {} for start in begun}
    for of, job in jobs.items():
        if record := outcome.records.get(job.key):
            scores[of.start].setdefault(of.task.partition('=')[2], {})[of.seed] = record.value['scores'][metric]
    report: dict[str, Any] = plain(
        dict(
            version=__version__,
            software=software(),
            command=command,
            axes=[AXES[option], f'{metric}, per cent'],
            starts={name: start.sha256 for name, start in begun.items()},
            scores={start: {value: summarize(seeds) for value, seeds in of.items()} for start, of in scores.items()},
            minutes=round(sum(record.seconds for record in outcome.records.values()) / 60, 1),
            failed={str(of): str(outcome.failures[job.key]) for of, job in jobs.items() if job.key in outcome.failures},
        )
    )
    write_report(report, out, console)
    return report


def write_report(report: Mapping[str, Any], out: Path, console: Console) -> None:
    """Write ``sweep.json``, draw ``sweep.png`` and print the table."""
    write_whole(out / 'sweep.json', json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + '\n')
    values = dict.fromkeys(value for scores in report['scores'].values() for value in scores)
    if values:
        sweep_figure(report).savefig(out / 'sweep.png', dpi=DPI)
    xlabel, ylabel = report['axes']
    table = Table('start', *values, title=f'{ylabel}, by {xlabel}')
    for start, scores in report['scores'].items():
        table.add_row(start, *(cell(scores.get(value)) for value in values))
    console.print(table)


def check_config(name: str, cfg: Config, option: str, values: Sequence[float]) -> tuple[str, str | None]:
    """Return the task of a fine-tuning config and the checkpoint that it names. Raises ValueError if it cannot be swept."""
    task = next((task for task, kind in TASKS.items() if kind.host == cfg.get('default_scope')), None)
    if task is None or cfg.get('val_evaluator') is None:
        raise ValueError(f'{name} has no val_evaluator of mmpretrain, mmdet or mmseg: give a config for fine-tuning.')
    own: str | None = (cfg.model.backbone.get('init_cfg') or {}).get('checkpoint')
    check_runner_options(cfg)
    rehearse(configs_of(cfg, option, values)[max(values)])
    cfg.model.backbone.init_cfg = None  # each start is checked by itself
    check_data(cfg, ('train_dataloader', 'val_dataloader'))
    return task, own
