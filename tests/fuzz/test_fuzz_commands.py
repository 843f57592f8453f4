"""Command lines with slips: never a traceback without `--debug`, always one of the documented exit codes."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.bounds import bounded
from helpers.fuzz_files import write_checkpoints
from helpers.labelled_files import write_images
from helpers.mutations import examples
from hypothesis import given
from hypothesis import strategies as st

from mkd_cli.main import main

CODES = (0, 1, 2)  # done; something is missing or failed, as the output says; a mistake of the user
LINES = 12
# `mkd host` runs a script, and `mkd benchmark` trains for minutes if a slip makes it valid: both are left out.
CORRECT = [
    'inspect zip.pth --config --json',
    'inspect ours.safetensors',
    'print-config dbot/dbot_digits --out flat.py',
    'convert zip.pth converted.pth --to timm --part student',
    'export ours.safetensors out.safetensors --to mae',
    'make-label-list images/train labels.txt --percent 50 --seed 1',
    'make-shards images/train shards --size 8 --labels --workers 1',
    'make-digit-scenes scenes --seed 0 --train 1 --val 1',
    'test dbot/dbot_digits zip.pth --work-dir run --out scores.json --out-item metrics',
    'evaluate-classifier dbot/dbot_digits zip.pth --folders a=images/val --classes images/train --size 16 --out sets',
]
SLOW = [
    'train dbot/dbot_digits --work-dir run --dry-run 2 --cfg-options data_root=images',
    'features zip.pth images/train --out features.npz --batch-size 2 --taps block:-1 --pools cls',
    'evaluate zip.pth --data images --out report --protocols knn --ks 1,2 --pools cls',
    'analyze zip.pth --data images/val --out page --images 4 --only attention',
    'make-digits digits',
]
VALUES = st.sampled_from(
    [
        '',
        ' ',
        '-1',
        '0',
        '1e999',
        'nan',
        'inf',
        '1.5',
        'abc',
        'ü',
        '日本',
        '\x1b[31m',
        '{',
        '[1,2',
        "'",
        '=',
        'a=',
        '=5',
    ]
    + [
        'a.b=c',
        'model=5',
        'ratio=abc',
        'seed=abc',
        '--',
        '-',
        '-x',
        '--nonsense',
        'x' * 3000,
        '../gone',
        'a,b',
    ]
    + [
        'zip.pth',
        'images',
        'cut.pth',
        'empty',
        'train',
        '1,2,',
        '9' * 40,
        '#student',
        'a=b=c.pth',
        'timm:x=zip.pth',
        '%s',
    ]
)
SLIPS = st.lists(
    st.tuples(
        st.sampled_from(['replace', 'drop', 'twice', 'insert', 'swap', 'letter', 'glue']), st.integers(0, 99), VALUES
    ),
    min_size=1,
    max_size=2,
)
KEPT = ('--dry-run', '2', '--train', '--val', '1')  # without them a command would take minutes


def slip(words: list[str], slips: list[tuple[str, int, str]]) -> list[str]:
    """A command line with mistakes."""
    for kind, number, value in slips:
        free = [place for place, word in enumerate(words) if word not in KEPT]
        place = free[number % len(free)] if free else 0
        if kind == 'insert' or not free:
            words = [*words[:place], value, *words[place:]]
        elif kind == 'replace':
            words = [*words[:place], value, *words[place + 1 :]]
        elif kind == 'drop':
            words = words[:place] + words[place + 1 :]
        elif kind == 'twice':
            words = [*words[: place + 1], words[place], *words[place + 1 :]]
        elif kind == 'letter':
            word = words[place]
            words = [*words[:place], word[: len(word) // 2] + word[len(word) // 2 + 1 :], *words[place + 1 :]]
        elif kind == 'glue':
            words = [*words[:place], words[place] + value, *words[place + 1 :]]
        else:
            other = free[(number + 1) % len(free)]
            words = list(words)
            words[place], words[other] = words[other], words[place]
    return words


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('commands')
    files = write_checkpoints(root)
    (root / 'cut.pth').write_bytes(files['zip.pth'].read_bytes()[:999])
    (root / 'empty').mkdir()
    for name in ('train', 'val'):
        write_images(root / 'images', name, count=2, side=16)
    return root


@pytest.fixture(autouse=True)
def unchanged(folder, monkeypatch) -> Iterator[None]:
    """Commands run in a folder of their own, and leave neither loggers nor threads behind."""
    monkeypatch.chdir(folder)
    threads, path = torch.get_num_threads(), list(sys.path)
    yield
    torch.set_num_threads(threads)
    sys.path[:] = path
    logging.disable(logging.NOTSET)


def run(words: list[str], capfd: pytest.CaptureFixture[str]) -> int:
    """Run a command in this process: its exit code is a documented one, and a refusal is short."""
    environment = dict(os.environ)
    capfd.readouterr()
    try:
        with bounded(0, seconds=30, more=2**30):
            code = main(words)
    except SystemExit as stopped:  # argparse ends the process
        code = stopped.code
    finally:
        os.environ.clear()
        os.environ.update(environment)
    shown = capfd.readouterr()
    assert code in CODES, code
    assert 'Traceback (most recent call last)' not in shown.err
    if code == 2:
        told = shown.err[max(shown.err.find('error: '), 0) :]
        assert told.startswith('error: ') and len(told.splitlines()) <= LINES, shown.err
    return code


ENDS = {'test': 2, 'evaluate-classifier': 1}  # the config has nothing to evaluate; the table says that all failed


@pytest.mark.parametrize('line', [*CORRECT, *SLOW])
def test_main__without_a_slip(folder, capfd, line):
    """Guard of the tests below: the command lines are right before anything happens to them."""
    code = run(line.split(), capfd)
    assert code == ENDS.get(line.split()[0], 0)


@pytest.mark.parametrize('line', CORRECT)
@given(slips=SLIPS)
def test_main__slips(folder, capfd, line, slips):
    run(slip(line.split(), slips), capfd)


@pytest.mark.parametrize('line', SLOW)
@given(slips=SLIPS)
@examples(0.3)
def test_main__slips_in_commands_that_measure(folder, capfd, line, slips):
    run(slip(line.split(), slips), capfd)


@given(words=st.lists(VALUES, max_size=4))
def test_main__anything(folder, capfd, words):
    run(words, capfd)
