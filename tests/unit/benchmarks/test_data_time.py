"""The benchmark of the input pipeline: it runs, its figures agree, and its images cost as much as ImageNet's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[3] / 'benchmarks'


@pytest.fixture
def tool(monkeypatch):
    """The benchmark as a module, which leaves this process its cores and threads."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import data_time

    monkeypatch.setattr(data_time.os, 'sched_setaffinity', lambda process, cores: None, raising=False)
    threads = torch.get_num_threads()
    yield data_time
    torch.set_num_threads(threads)


def test_data_time__every_contestant_in_one_run(tool, tmp_path, capsys):
    tool.main(['--images', '8', '--pairs', '2', '--json', str(tmp_path / 'out.json')])
    assert 'ours, 256-px shards' in capsys.readouterr().out
    found = json.loads((tmp_path / 'out.json').read_text())
    rows = {row['name']: row for row in found['rows']}
    assert {'torchvision, 500 × 375', 'ours, 500 × 375 files', 'ours, 256-px shards'} <= rows.keys()
    assert rows['torchvision, 500 × 375']['ratio'] == dict(low=1, median=1, high=1)
    for row in rows.values():
        middle = sum(row['processor_seconds']) / 2  # of two rounds
        assert row['images_per_s'] == pytest.approx(8 / middle)
    assert 95 < found['kilobytes']['500 × 375'] < 125


def test_report__ratios_are_of_processor_time_pair_by_pair(tool):
    found = {tool.REFERENCE: [(2.0, 9.0), (4.0, 9.0), (6.0, 9.0)], 'ours': [(1.0, 1.0), (1.0, 2.0), (2.0, 3.0)]}
    _, ours = tool.report(found, 10)['rows']
    assert ours['ratio'] == dict(low=2.5, median=3.0, high=3.5)
    assert (ours['images_per_s'], ours['images_per_s_wall']) == (10.0, 5.0)
