"""The benchmark of dense backbones at a tiny size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

STEP_TIME = Path(__file__).resolve().parents[3] / 'benchmarks/step_time.py'


@pytest.mark.slow
def test_backbones__both_pairs_are_timed_and_their_memory_measured(tmp_path):
    options = ['--size', '32x48', '--arch', 'ti', '--depth', '1', '--pairs', '1', '--device', 'cpu']
    command = [sys.executable, STEP_TIME, 'backbones', *options, '--json', tmp_path / 'report.json']
    subprocess.run(command, check=True, capture_output=True)
    results = json.loads((tmp_path / 'report.json').read_text())['results']
    assert [(found['kind'], found['size']) for found in results] == [('absolute', [32, 48]), ('relative', [32, 48])]
    for found in results:
        assert found['time_ratio']['median'] > 0
        assert len(found['peak_bytes']) == 2
        assert min(found['peak_bytes']) > 2**20
