"""The comparison of JPEG decoders runs, and every decoder is fed the same crops."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mkd_plugin.datasets.crops import CropForDevice
from mkd_plugin.datasets.loading import LoadAnyImage

BENCHMARKS = Path(__file__).resolve().parents[3] / 'benchmarks'


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import decode_time

    threads = torch.get_num_threads()
    yield decode_time
    torch.set_num_threads(threads)


def test_decode_time__rows_and_levels(tool, capsys):
    before = LoadAnyImage.transform
    tool.main(['--images', '4', '--pairs', '1', '--only', 'torchvision'])
    lines = [line for line in capsys.readouterr().out.splitlines() if '×' in line]
    assert len(lines) == 2 and 'cv2 (ours)' in lines[0] and '1.00 ×' in lines[0] and 'torchvision' in lines[1]
    assert [line.split()[-2] for line in lines] == ['0', '0']
    assert LoadAnyImage.transform is before and 'rand_crop_params' not in vars(CropForDevice)
