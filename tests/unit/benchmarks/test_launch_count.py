"""The command that counts launches prints the figures of docs/benchmarks.md."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_launch_count__prints_the_documented_figures():
    command = [sys.executable, '-W', 'ignore', 'benchmarks/launch_count.py']
    environment = {**os.environ, 'PYTHONPATH': 'tests'}
    printed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"^(forward|AdamW|AdamW of mmengine's constructor|crops) (\d+)", printed, re.MULTILINE))
    documented = (ROOT / 'docs/benchmarks.md').read_text()
    for number in (int(found['forward']), int(found['AdamW']), int(found["AdamW of mmengine's constructor"])):
        assert f'| {number:,} |' in documented
    assert found['crops'] == '128' and '| 128, for any batch |' in documented
