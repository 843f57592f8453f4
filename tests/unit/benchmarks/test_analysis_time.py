"""The benchmark of the analysis on a small network: both spectra agree, and memory is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[3] / 'benchmarks'))
    import analysis_time

    return analysis_time


def test_main__figures_agree(tool, tmp_path, capsys):
    tool.main(['--images', '20', '--arch', 'ti', '--side', '3', '--pairs', '2', '--json', str(tmp_path / 'out.json')])
    assert '× faster' in capsys.readouterr().out
    found = json.loads((tmp_path / 'out.json').read_text())
    spectra, mib = found['spectra'], found['memory']['mib']
    assert spectra['greatest_difference_of_logs'] < 1e-8
    ratios = [other / mine for mine, other in zip(spectra['ours_seconds'], spectra['numpy_seconds'], strict=True)]
    assert spectra['speed_up'] == dict(least=min(ratios), median=pytest.approx(sum(ratios) / 2), most=max(ratios))
    assert mib['attention_of_one_layer'] == 20 * 3 * 10 * 10 * 4 / 2**20
    assert mib['network_all_layers_kept'] > mib['network_alone'] + 11 * mib['attention_of_one_layer']
