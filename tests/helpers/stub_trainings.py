"""A benchmark whose trainings are a script that writes scores at once, or fails, as it is told."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from mkd_plugin.reporting.benchmark import Settings, benchmark
from mkd_plugin.reporting.benchmark.suites import SCRATCH

# Stands for tools/train.py: notes that it was called, then writes what a training would. What it does is in `orders.json`.
TRAINER = """
import json, os, pathlib, signal, sys, time
folder, job, task, start, seed = pathlib.Path(sys.argv[1]), *sys.argv[2:5], int(sys.argv[5])
with open('calls.txt', 'a') as calls:
    calls.write(job + '\\n')
order = json.loads(pathlib.Path('orders.json').read_text()).get(job)
if order == 'fail':
    print('first line\\n' + 'x\\n' * 50 + 'ValueError: the 7th image is broken')
    sys.exit(3)
if order == 'interrupt' and not (folder / 'saved').exists():
    def save(number, frame):
        (folder / 'saved').touch()
        sys.exit(85)
    signal.signal(signal.SIGTERM, save)
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(60)
score = {'classification': 50, 'detection': 0.2, 'segmentation': 30}[task] * (1 + 0.1 * seed ** 2)
score *= {'scratch': 1.0, 'a': 1.5, 'b': 0.9}[start]
names = {
    'classification': ['accuracy/top1'], 'detection': ['coco/bbox_mAP', 'coco/segm_mAP'], 'segmentation': ['mIoU', 'mAcc'],
}[task]
rows = [dict(mode='train', iter=n, loss=9.0 / n) for n in (1, 2)]
rows += [dict(mode='val', iter=2, **dict.fromkeys(names, score / 2))]
rows += [dict(mode='train', iter=4, loss=1.0), dict(mode='val', iter=4, other=1, **dict.fromkeys(names, score))]
(folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\\n' for row in rows))
"""


def run(checkpoints=('a.pth',), **options):
    """A benchmark; the report and what was printed."""
    printed = io.StringIO()
    settings = Settings(**{**dict(against=SCRATCH, pictures=0), **options})
    found = benchmark(
        checkpoints, settings, out=Path('out'), command='bash tools/benchmark_all.sh', console=Console(file=printed, width=200)
    )  # fmt: skip
    return found, printed.getvalue()


def calls():
    """The trainings that were begun since the last time."""
    file = Path('calls.txt')
    begun = file.read_text().splitlines() if file.is_file() else []
    file.unlink(missing_ok=True)
    return begun


def order(**orders):
    """Tell trainings what to do; all others succeed."""
    Path('orders.json').write_text(json.dumps(orders))
