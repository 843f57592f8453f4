"""The GPU benchmark: all of it on a CPU with tiny networks, and that nothing that fails stops the rest."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import gpu_benchmark
import gpu_benchmark_device as device_sections
import gpu_benchmark_steps
import pytest
import torch
from gpu_benchmark_report import BASES, tables
from gpu_benchmark_steps import LADDER, Setup
from helpers.house import ROOT

# What the official network offers to its loop, without its depth.
OFFICIAL = """
import torch
from torch import nn

class MaskedAutoencoderViT(nn.Module):
    def __init__(self, img_size, patch_size, embed_dim, depth, num_heads, norm_layer, decoder_depth, decoder_embed_dim=8,
                 decoder_num_heads=2, norm_feature_loss=False, drop_path_rate=0.0):
        super().__init__()
        self.embed = nn.Conv2d(3, embed_dim, patch_size, patch_size)
        self.norm = norm_layer(embed_dim)

    def forward(self, images, teacher=None, mask_ratio=0.75, tlayernorm=0):
        target = teacher.norm(teacher.embed(images).flatten(2).mT).detach()
        found = self.norm(self.embed(images).flatten(2).mT)
        return (found - target).square().mean(), found, None
"""
# A process that measures nothing: it crashes in one section, hangs in another, does the others, and once starts slowly.
WORKER = """
import json, os, sys, time
out, sections = sys.argv[sys.argv.index('--out') + 1], sys.argv[sys.argv.index('--sections') + 1 :]
folder = sys.argv[sys.argv.index('--folder') + 1]
if sections[0] == 'memory':  # after the section that hangs
    time.sleep(1.5)
for name in sections[: sections.index('--batch-size')]:
    def write(**line):
        with open(out, 'a') as file:
            file.write(json.dumps(dict(section=name, **line)) + '\\n')
    write(event='begin')
    if name == 'step':
        os._exit(9)
    if name == 'profile':
        time.sleep(60)
    write(row='process', number=os.getpid(), folder=folder)
    write(event='end', took=0.0)
"""


@pytest.fixture(scope='module')
def tiny(tmp_path_factory) -> tuple[list[dict], str]:
    """The lines of a tiny run of everything, and what it printed."""
    folder = tmp_path_factory.mktemp('gpu_benchmark')
    (folder / 'official').mkdir()
    (folder / 'official/models_mae.py').write_text(OFFICIAL)
    options = ['--tiny', '--out', str(folder / 'out.jsonl'), '--official', str(folder / 'official')]
    command = [sys.executable, str(ROOT / 'benchmarks/gpu_benchmark.py'), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    lines = gpu_benchmark.read_lines(folder / 'out.jsonl')
    failed = [line for line in lines if 'error' in line]
    assert done.returncode == 0, (failed, done.stderr[-2000:], (folder / 'out.jsonl.log').read_text()[-3000:])
    return lines, done.stdout


def rows(lines: list[dict], section: str) -> dict[str, dict]:
    return {line['row']: line for line in lines if line['section'] == section and 'row' in line}


def test_tiny__runs_every_section(tiny):
    lines, _ = tiny
    ended = [line['section'] for line in lines if line.get('event') == 'end']
    assert ended == list(gpu_benchmark.SECTIONS)
    skipped = {line['row'] for line in lines if 'skipped' in line}
    assert all('attention' in row for row in skipped), skipped  # kernels that a CPU does not have


def test_tiny__steps_have_rates_and_their_share_of_the_measured_product(tiny):
    lines, _ = tiny
    found = rows(lines, 'step')
    assert list(found) == list(LADDER) and {*BASES, *BASES.values()} <= set(LADDER)
    peaks = {row['tflop_per_s'] / row['percent_of_peak'] for row in found.values()}
    assert max(peaks) == pytest.approx(min(peaks))  # one product for all rows
    assert all(row['images_per_s'] == pytest.approx(4e3 / row['ms_a_step']) for row in found.values())
    assert rows(lines, 'ceilings')['product of 8192²']['tflop_per_s'] == pytest.approx(max(peaks) * 100)
    turns = rows(lines, 'official')
    official = 'official in float16'
    assert turns.keys() == {f'{official}, as its loop', 'official in bfloat16', f'{official}, our blocks compiled'}
    for row in turns.values():
        assert row['time_low'] <= row['time_median'] <= row['time_high']


def test_tiny__what_is_computed_is_right(tiny):
    lines, _ = tiny
    found = rows(lines, 'correctness')
    assert found['crops']['levels'] <= 2
    assert len(found) == 12 and all(row['within'] for row in found.values()), found
    assert found['dBOT, float32']['gradient'] < 1e-5 < found['dBOT, bfloat16']['gradient']
    resumed = rows(lines, 'resume')
    assert resumed.keys() == {'deterministic kernels'}
    row = resumed['deterministic kernels']
    assert (row['values_unequal_again'], row['values_unequal_resumed'], row['resumed_differs_by']) == (0, 0, 0)
    assert row['within']


def test_tiny__trains_over_a_promotion_and_loads(tiny):
    lines, _ = tiny
    (run,) = rows(lines, 'run').values()
    assert (run['iterations'], run['stages']) == (8, 2) and math.isfinite(run['last_loss'])
    files, shards = 'files, to normalised images on the device', 'shards of 256 pixels, to images on the device'
    loaded = rows(lines, 'pipeline')
    assert loaded.keys() == {'files', files, 'JPEGs decoded by the device', shards}
    assert all(row['images_per_s'] > 0 for row in loaded.values())


def test_tiny__memory_and_profile(tiny):
    lines, _ = tiny
    found = rows(lines, 'memory')
    selective, compiled = 'ours, selective recomputation', 'ours, blocks compiled'
    assert found.keys() == {'ours', 'official, float16', selective, compiled}
    for name, row in found.items():
        assert ('largest_batch' in row) == (name in ('ours', 'official, float16'))
        assert row['mb_an_image'] > 0
        if 'largest_batch' in row:  # memory ends at three times what a batch of four needs
            assert row['found'] and 4 < row['largest_batch'] <= 14
    profiles = rows(lines, 'profile')
    assert profiles.keys() == {'as in training', 'compiled blocks'}
    for row in profiles.values():
        assert sum(row[f'percent_{kind}'] for kind in ('products', 'attention', 'other')) == pytest.approx(100)
        assert row['percent_products'] > 0 and row['launches_a_step'] > 100 and len(row['top']) == 25


def test_tiny__prints_the_tables_that_report_prints(tiny, tmp_path, capsys):
    lines, printed = tiny
    (tmp_path / 'lines.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    assert gpu_benchmark.main(['--report', str(tmp_path / 'lines.jsonl')]) == 0
    report = capsys.readouterr().out
    assert report in printed
    assert re.search(r'\| compiled blocks \| [\d.,]+ \|', report) and 'Longest kernels, as in training' in report
    assert re.findall(r'^### (\w+)', report, re.MULTILINE) == list(gpu_benchmark.SECTIONS)


def test_supervisor__goes_on_after_a_crash_and_a_hang(tmp_path, monkeypatch):
    (tmp_path / 'worker.py').write_text(WORKER)
    monkeypatch.setattr(gpu_benchmark, '__file__', str(tmp_path / 'worker.py'))
    monkeypatch.setattr(gpu_benchmark, 'GRACE', 0.5)
    monkeypatch.setitem(gpu_benchmark.SECTIONS, 'profile', ('', 0.5))
    assert gpu_benchmark.main(['--out', str(tmp_path / 'out.jsonl')]) == 1
    lines = gpu_benchmark.read_lines(tmp_path / 'out.jsonl')
    errors = {line['section']: line['error'] for line in lines if 'error' in line}
    assert errors.keys() == {'step', 'profile'}
    assert 'code 9' in errors['step'] and re.match('ended after 1 s', errors['profile'])
    numbers = {line['section']: line['number'] for line in lines if 'row' in line}
    assert numbers.keys() == gpu_benchmark.SECTIONS.keys() - errors.keys()
    assert numbers['smoke'] == numbers['correctness'] and numbers['memory'] == numbers['pipeline']
    assert not any(Path(line['folder']).exists() for line in lines if 'row' in line)
    # a new process after each failure, and one for the section with an environment of its own
    assert len(set(numbers.values())) == 4


def test_supervisor__names_what_there_was_no_time_for(tmp_path, capsys):
    assert gpu_benchmark.main(['--out', str(tmp_path / 'out.jsonl'), '--minutes', '0']) == 1
    assert capsys.readouterr().out.count('not begun: there was no time left') >= len(gpu_benchmark.SECTIONS)


def test_main__renames_earlier_results(tmp_path):
    out = tmp_path / 'out.jsonl'
    out.write_text('earlier')
    Path(f'{out}.log').write_text('earlier')
    gpu_benchmark.main(['--out', str(out), '--minutes', '0'])
    (kept,) = set(tmp_path.iterdir()) - {out}
    assert kept.read_text() == 'earlier' and kept.name.startswith('out.jsonl.2')


@pytest.mark.parametrize('values', [dict(within=False), dict(works=False), dict(error='ValueError: no')])
def test_main__wrong_results_are_failures(tmp_path, values):
    for line, code in ((dict(within=True, works=True), 0), (values, 1)):
        (tmp_path / 'lines').write_text(json.dumps(dict(section='correctness', row='crops', **line)) + '\n')
        assert gpu_benchmark.main(['--report', str(tmp_path / 'lines')]) == code


def test_main__without_a_file_to_report(tmp_path, capsys):
    with pytest.raises(SystemExit):
        gpu_benchmark.main(['--report', str(tmp_path / 'none')])
    assert 'there is no such file' in capsys.readouterr().err


def test_setup__a_row_that_fails_does_not_stop_the_next(tmp_path, monkeypatch):
    def fails():
        raise ValueError('no such kernel')

    setup = Setup(torch.device('cpu'), True, 4, tmp_path, None, math.inf)
    found = list(setup.run({'bad': fails, 'good': lambda: dict(value=1)}))
    assert found == [dict(row='bad', error='ValueError: no such kernel'), dict(row='good', value=1)]
    monkeypatch.setattr(gpu_benchmark_steps, 'device_works', lambda: False)
    lost = setup.run({'bad': fails, 'good': dict})
    assert next(lost) == found[0]
    with pytest.raises(ValueError, match='no such kernel'):
        next(lost)
    late = Setup(torch.device('cpu'), True, 4, tmp_path, None, 0.0)
    assert list(late.run({'bad': fails})) == [dict(row='bad', skipped='no time left')]


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_setup__without_a_gpu(tmp_path):
    with pytest.raises(ValueError, match='torch sees no GPU.*--tiny'):
        Setup.of(gpu_benchmark.parse_args([]), tmp_path, math.inf)


@pytest.mark.parametrize(('most', 'start', 'unit'), [(700, 512, 64), (5000, 512, 64), (100, 512, 64), (11, 4, 2)])
def test_largest_batch__by_doubling_and_bisection(most, start, unit):
    tried = []
    found = device_sections.largest_batch(lambda size: tried.append(size) or size <= most, start, unit)
    assert found == (most // unit * unit, True)
    assert len(tried) <= 12
    assert device_sections.largest_batch(lambda size: True, start, unit, end=0.0) == (0, False)


def test_read_trace__counts_kernels_and_waits(tmp_path):
    events = [
        dict(cat='kernel', name='nvjet_tst_128', dur=30.0),
        dict(cat='kernel', name='nvjet_tst_128', dur=20.0),
        dict(cat='kernel', name='flash_fwd_kernel', dur=25.0),
        dict(cat='gpu_memcpy', name='Memcpy HtoD', dur=5.0),
        dict(cat='kernel', name='vectorized_elementwise', dur=10.0),
        dict(cat='kernel', name='triton_poi_fused_addmm_gelu_1', dur=6.0),
        dict(cat='kernel', name='triton_red_fused__scaled_dot_product_flash_attention_0', dur=4.0),
        dict(cat='gpu_user_annotation', name='Optimizer.step', dur=900.0),
        dict(cat='cuda_runtime', name='cudaStreamSynchronize', dur=1.0),
        dict(cat='cuda_runtime', name='cudaDeviceSynchronize', dur=1.0),  # the profiler's
        dict(cat='cuda_runtime', name='cudaLaunchKernel', dur=1.0),
        dict(name='process_name'),
    ]
    (tmp_path / 'trace.json').write_text(json.dumps(dict(traceEvents=events)))
    kernels, waits = device_sections.read_trace(tmp_path / 'trace.json')
    found = device_sections.summary_of(kernels, 2, 0.001)
    assert waits == 1 and found['launches_a_step'] == 3.5 and found['ms_a_step'] == 0.5
    assert [found[f'percent_{kind}'] for kind in ('products', 'attention', 'other')] == [50, 25, 25]
    assert found['top'][0] == ('nvjet_tst_128', 0.025, 1.0)


def test_tables__show_gains_and_failures():
    lines = [
        dict(section='step', row='first', images_per_s=1000.0),
        dict(section='step', row='second', images_per_s=1500.0),
        dict(section='step', row='third', error='ValueError: no'),
        dict(section='step', row='fourth', images_per_s=2000.0),
        dict(section='step', row='crops resized on the device, as in training', images_per_s=2500.0),
        dict(section='step', row='compiled blocks', images_per_s=3000.0),
        dict(section='step', row='compiled loss instead, without these options', images_per_s=2750.0),
        dict(section='step', event='end', took=3.2),
    ]
    report = tables(lines)
    assert '### step, 3 s' in report and '| second | 1,500 | 1.5 | 1.5 |' in report
    assert '| fourth | 2,000 |  | 2 |' in report  # the row before it is missing
    assert '| compiled loss instead, without these options | 2,750 | 1.1 | 2.75 |' in report
    assert '- error: third: ValueError: no' in report


def test_wheels__are_the_tested_versions():
    """Every package that the script collects is pinned."""
    script = (ROOT / 'tools/gpu_wheels.sh').read_text()
    names = re.search(r'packages=\(([^)]*)\)', script)[1].split()
    pinned = {line.split('==')[0] for line in Path(ROOT, 'requirements/constraints.txt').read_text().split()}
    assert len(names) > 10 and set(names) <= pinned
    shown = subprocess.run(['bash', ROOT / 'tools/gpu_wheels.sh', '--help'], capture_output=True, text=True, check=True)
    assert 'pip install --no-index' in shown.stdout
