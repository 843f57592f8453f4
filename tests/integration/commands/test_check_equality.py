"""benchmarks/check_equality.py: real sizes against timm, Hugging Face, mmpretrain and OpenCLIP; benchmarks/load_time.py."""

from __future__ import annotations

import importlib
import json
import sys

import pytest

TOOL = importlib.import_module('check_equality')


def check(case, targets, tmp_path):
    from dataclasses import replace

    pytest.importorskip('timm')
    rows = TOOL.rows_of(replace(case, targets=targets))
    assert len(rows) == len(targets)
    for row in rows:
        assert row['errors'] and max(row['errors'].values()) < 1e-5, row
        assert row['identical'], row


@pytest.mark.parametrize(
    'case', [case for case in TOOL.cases() if case.name.startswith('ViT-') and case.size in ('ti', 's')]
)
def test_rows_of__small_networks_of_timm(case, tmp_path):
    check(case, ('timm',), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('case', TOOL.cases(), ids=lambda case: case.name)
def test_rows_of__every_network_and_library(case, tmp_path):
    for package in ('transformers', 'mmpretrain', 'open_clip'):
        pytest.importorskip(package)
    check(case, case.targets, tmp_path)


def test_main__nan_is_not_equal(monkeypatch, capsys, tmp_path):
    """Python's max(0.0, nan) is 0.0."""
    case = next(case for case in TOOL.cases() if case.size == 'ti')
    found = [type(case)(case.name, 'ti', case.options, ('timm',)), type(case)('large', 'l', case.options, ('timm',))]
    monkeypatch.setattr(TOOL, 'cases', lambda: found)
    file = tmp_path / 'report.json'
    monkeypatch.setattr(sys, 'argv', ['check_equality.py', '--sizes', 'ti', '--json', str(file)])
    for error, same, code in ((float('nan'), True, 1), (2e-4, True, 1), (1e-6, False, 1), (1e-6, True, 0)):
        monkeypatch.setattr(TOOL, 'compare', lambda *_, error=error, same=same: (error, same, []))
        assert TOOL.main() == code
        printed = capsys.readouterr().out
        assert ('not equal: 1e-04 is allowed' in printed) == bool(code and same)
        assert ('| no |' in printed) == (not same)
        report = json.loads(file.read_text())
        (row,) = report['rows']
        assert row['class'] == 'timm VisionTransformer' and row['identical'] is same
        shown = None if error != error else error
        assert row['errors'] == {'224 × 224': shown, '192 × 256': shown}
        assert report['not_run'] == ['large'] and report['tolerance'] == 1e-4 and report['versions']['timm']


def test_main__a_mistyped_size(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['check_equality.py', '--sizes', 'tiny'])
    with pytest.raises(SystemExit):
        TOOL.main()
    assert 'invalid choice' in capsys.readouterr().err


def test_cases__cover_what_the_papers_use():
    names = ' '.join(case.name for case in TOOL.cases())
    for wanted in (
        'ViT-h/14',
        'DeiT-b distilled',
        'DINOv2-b/14',
        'BEiT v2-b, bias per block',
        'CLIP-b/16',
        'CLIP-l/14',
    ):
        assert wanted in names


def test_load_time__measures_both(capsys, monkeypatch):
    tool = importlib.import_module('load_time')
    monkeypatch.setattr(
        tool,
        'measure',
        lambda args, file, way: dict(seconds=2.0 + (way == 'ours'), processor=1.0, before=0, peak=2**20),
    )
    monkeypatch.setattr(sys, 'argv', ['load_time.py', '--arch', 'ti', '--rounds', '2'])
    tool.main()
    told = capsys.readouterr().out
    for base in ('torch.load', 'here, without checksums'):
        assert f'here over {base}: 1.50 (1.50 – 1.50)' in told


def test_load_time__loads_what_it_wrote(tmp_path):
    from mkd_plugin.models.vit import VisionTransformer

    tool = importlib.import_module('load_time')
    for name in ('timm', 'beit', 'hf_vit', 'training'):
        options = dict(format=name, once='ours', cold=True, training=name == 'training', file=str(tmp_path / name))
        args = tool.argparse.Namespace(arch='ti', **options)
        tool.write_file(args, tmp_path / name)
        found = tool.run_once(args)
        assert found['seconds'] > 0 and found['peak'] >= found['before'] > 0
        assert found['tensors'] == len(VisionTransformer(**tool.options_of(args)).state_dict()) > 100
