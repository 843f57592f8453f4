from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.house import ROOT
from helpers.labelled_files import write_images, write_student

from mkd_cli import evaluate as command
from mkd_plugin.evaluation import protocols
from mkd_plugin.interop.export import export_weights
from mkd_plugin.interop.student import load_student
from mkd_plugin.reporting.evaluation_table import short_names
from mkd_plugin.utils.files import sha256_of

QUICK = ['--ks', '1,3', '--shots', '2', '--epochs', '5', '--few-epochs', '5', '--draws', '2', '--resize', '16']


@pytest.fixture
def data(tmp_path) -> Path:
    """Colours that a random network tells apart."""
    write_images(tmp_path, 'data/train', count=6)
    return write_images(tmp_path, 'data/val', count=3).parent


def run(*arguments: object) -> tuple[int, dict, str]:
    out = Path(arguments[-1])
    code = command.main([*map(str, arguments[:-1]), '--out', str(out), *QUICK])
    return code, json.loads((out / 'evaluation.json').read_text()), (out / 'evaluation.md').read_text()


def test_evaluate__one_table_for_all_checkpoints(data, tmp_path, capsys):
    paths = [write_student(tmp_path, 'a.pth', seed=0), write_student(tmp_path, 'b.pth', seed=1)]
    code, found, page = run(*paths, '--data', data, tmp_path / 'out')
    assert code == 0 and not found['failures']
    assert [(row['checkpoint'], row['protocol']) for row in found['rows']] == [
        (name, protocol)
        for name in 'ab'
        for protocol, rows in (('knn', 4), ('linear', 2), ('fewshot', 2))
        for _ in range(rows)
    ]
    about = found['checkpoints']['a']
    assert about['source'] == str(paths[0]) and about['identity'].startswith(f'{sha256_of(paths[0])} backbone. ')
    assert (about['pixel_mean'], about['pixel_std']) == ([127.5] * 3, [60.0] * 3)
    rows = [line for line in page.splitlines() if line.startswith('|')]
    assert rows[0] == '| protocol | setting | feature | a | b |' and len(rows) == 2 + 8
    first = [row for row in found['rows'] if row['setting'] == 'k = 3' and row['feature'] == 'block:-1 mean']
    assert f'| knn | k = 3 | block:-1 mean | {first[0]["top1"]:.1f} | {first[1]["top1"]:.1f} |' in rows
    assert 'chosen on the validation set' in page
    printed = capsys.readouterr().out
    assert 'fewshot' in printed and 'evaluation.json' in printed


def test_evaluate__features_are_computed_once(data, tmp_path, monkeypatch):
    path, calls = write_student(tmp_path, 'a.pth'), []
    features = importlib.import_module('mkd_plugin.evaluation.features')
    compute = features.compute
    monkeypatch.setattr(features, 'compute', lambda *args: calls.append(args) or compute(*args))
    _, first, _ = run(path, '--data', data, '--protocols', 'knn', tmp_path / 'out')
    alone = len(calls)
    run(path, '--data', data, '--protocols', 'knn,linear,fewshot', tmp_path / 'three')
    assert len(calls) == 2 * alone > 0
    monkeypatch.setattr(features, 'compute', None)
    _, second, _ = run(path, '--data', data, '--protocols', 'knn', tmp_path / 'out')
    assert second == first


def test_evaluate__failed_protocol_leaves_the_others(data, tmp_path, monkeypatch):
    def broken(split, plan, report):
        yield protocols.Row('linear', 'half', 'x', 50.0)
        raise ValueError('it broke here')

    monkeypatch.setitem(protocols.PROTOCOLS, 'linear', broken)
    code, found, page = run(
        write_student(tmp_path, 'a.pth'), '--data', data, '--protocols', 'linear,knn', tmp_path / 'out'
    )
    assert code == 1
    assert {row['protocol'] for row in found['rows']} == {'knn'}
    assert found['failures'] == [dict(checkpoint='a', protocol='linear', reason='it broke here')]
    assert 'it broke here' in page


def test_evaluate__stopped_run_leaves_what_it_has(data, tmp_path, monkeypatch):
    def stopped(split, plan, report):
        raise KeyboardInterrupt

    monkeypatch.setitem(protocols.PROTOCOLS, 'linear', stopped)
    path = write_student(tmp_path, 'a.pth')
    code, found, _ = run(path, '--data', data, '--protocols', 'knn,linear', tmp_path / 'out')
    assert code == 130 and len(found['rows']) == 4


def test_evaluate__k_larger_than_the_data(data, tmp_path):
    arguments = ['--data', data, '--protocols', 'knn,fewshot', '--ks', '3,18,19', '--shots', '2,7']
    path, out = write_student(tmp_path, 'a.pth'), tmp_path / 'out'
    code = command.main([str(path), *map(str, arguments), '--out', str(out), '--few-epochs', '5', '--pools', 'mean'])
    found = json.loads((out / 'evaluation.json').read_text())
    assert code == 0
    got = {row['setting']: row['top1'] is not None for row in found['rows']}
    assert got == {
        'k = 3': True,
        'k = 18': True,
        'k = 19': False,
        '2 labels per class': True,
        '7 labels per class': False,
    }
    notes = [row['note'] for row in found['rows'] if row['top1'] is None]
    assert 'k can be 1 … 18' in notes[0] and 'smallest class has 6 images' in notes[1]
    assert '| knn | k = 19 | block:-1 mean | not measured |' in (out / 'evaluation.md').read_text()


def test_evaluate__bad_checkpoint_leaves_the_others(data, tmp_path):
    (tmp_path / 'bad.pth').write_bytes(b'no checkpoint')
    good = write_student(tmp_path, 'a.pth')
    code, found, page = run(tmp_path / 'bad.pth', good, '--data', data, '--protocols', 'knn', tmp_path / 'out')
    assert code == 1 and [entry['checkpoint'] for entry in found['failures']] == ['bad']
    assert {row['checkpoint'] for row in found['rows']} == {'a'}
    assert '| – |' in page


def test_evaluate__files_of_other_formats(data, tmp_path):
    """The same network in our format and in timm's gives the same numbers; assumptions are listed."""
    ours = write_student(tmp_path, 'ours.pth')
    network = load_student(ours).backbone
    _, weights, _ = export_weights(network.state_dict(), network.options, 'timm')
    torch.save(weights, tmp_path / 'theirs.pth')
    known = ['--network', 'num_heads=4', '--data', data, '--protocols', 'knn']
    code, found, page = run(ours, f'x={tmp_path}/theirs.pth', *known, '--pixels', 'half', tmp_path / 'out')
    assert code == 0
    assert found['checkpoints']['x']['pixel_mean'] == [127.5] * 3
    assert '- x: timm' in page and 'mean 127.5 127.5 127.5, std 127.5' in page
    assert 'pixel statistics from --pixels half' in page
    _, guessed, page = run(tmp_path / 'theirs.pth', *known, tmp_path / 'other')
    assert guessed['checkpoints']['theirs']['pixel_mean'] == [123.675, 116.28, 103.53]
    assert "ImageNet's pixel statistics: the file states none" in page


def test_evaluate__teacher_of_a_run(data, tmp_path):
    path = write_student(tmp_path, 'a.pth')
    code, found, _ = run(f'{path}#boot', path, '--data', data, '--protocols', 'knn', tmp_path / 'out')
    assert code == 1 and {row['checkpoint'] for row in found['rows']} == {'a'}
    assert "under the prefix 'boot" in found['failures'][0]['reason']


def test_evaluate__val_without_labels(data, tmp_path):
    for path in list((data / 'val').rglob('*.png')):
        path.rename(data / 'val' / f'{path.parent.name}{path.name}')
    for folder in (data / 'val').iterdir():
        if folder.is_dir():
            folder.rmdir()
    code, found, _ = run(write_student(tmp_path, 'a.pth'), '--data', data, tmp_path / 'out')
    assert code == 1 and 'val has no labels' in found['failures'][0]['reason']


@pytest.mark.parametrize(
    'options, message',
    [
        (['--protocols', 'knn,nearest'], r"protocols \['nearest'\] are not known: use some of knn, linear, fewshot"),
        (['--pools', 'max'], "pool='max'"),
        (['--taps', 'relation:0'], "tap='relation:0'"),
        (['--pools', 'cls,cls'], 'each once'),
        (['--rates', '0'], 'above 0'),
    ],
)
def test_evaluate__bad_options(data, tmp_path, capsys, options, message):
    path = write_student(tmp_path, 'a.pth')
    assert command.main([str(path), '--data', str(data), '--out', str(tmp_path / 'out'), *options]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_evaluate__output_folder_that_cannot_be_written(data, tmp_path, capsys):
    (tmp_path / 'file').write_text('')
    assert (
        command.main([str(write_student(tmp_path, 'a.pth')), '--data', str(data), '--out', str(tmp_path / 'file')]) == 2
    )
    assert 'Cannot write to' in capsys.readouterr().err


# root may write everywhere, unless it gives that up
ORDINARY = ['setpriv', '--bounding-set', '-dac_override,-dac_read_search'] if os.getuid() == 0 else []


@pytest.mark.skipif(bool(ORDINARY) and shutil.which('setpriv') is None, reason='root may write everywhere')
def test_evaluate__output_folder_without_rights(data, tmp_path):
    (tmp_path / 'out').mkdir(mode=0o500)
    arguments = [write_student(tmp_path, 'a.pth'), '--data', data, '--out', tmp_path / 'out']
    done = subprocess.run(
        [*ORDINARY, sys.executable, '-m', 'mkd_cli.main', 'evaluate', *map(str, arguments)],
        env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and 'Permission denied' in done.stderr, done.stderr[-2000:]
    assert not list((tmp_path / 'out').iterdir())


def test_short_names__tell_checkpoints_apart():
    assert short_names(['x/stage_1.pth', 'x/stage_2.pth']) == ['stage_1', 'stage_2']
    assert short_names(['w/a/stage_1.pth', 'w/b/stage_1.pth']) == ['a/stage_1', 'b/stage_1']
    with pytest.raises(ValueError, match='given twice'):
        short_names(['a.pth', 'a.pth'])


def test_evaluate__rerun_skips_finished_jobs_and_measures_what_changed(data, tmp_path, capsys):
    path, options = write_student(tmp_path, 'a.pth'), ['--data', data, '--protocols', 'knn,linear']
    _, first, _ = run(path, *options, tmp_path / 'out')
    capsys.readouterr()
    assert run(path, *options, tmp_path / 'out')[1] == first
    assert '3 jobs, 3 already done' in capsys.readouterr().err
    run(path, *options, '--rates', '0.5', tmp_path / 'out')
    printed = capsys.readouterr().err
    assert '3 jobs, 2 already done' in printed and '[1/1] linear of a' in printed
    write_student(tmp_path, 'a.pth', seed=1)  # another network under the same path
    run(path, *options, tmp_path / 'out')
    assert '3 jobs, 0 already done' in capsys.readouterr().err
