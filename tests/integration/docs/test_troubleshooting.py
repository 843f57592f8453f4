"""Every message of docs/troubleshooting.md is one that the code has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / 'docs' / 'troubleshooting.md'

# Said by torch, mmengine, mmcv, mmdet, NumPy, SciPy, pip or python.
FOREIGN = {
    'operator torchvision::nms does not exist',
    "No module named 'mmcv._ext'",
    "No module named 'pkg_resources'",
    'Fail to import MultiScaleDeformableAttention',
    'Line NMS is not compiled',
    'X is not in the mmpretrain::model registry',
    'got an unexpected keyword argument',
    '… in child config cannot inherit from base because …',
    'mmengine does not support to load mkd_plugin config',
    'mmsegmentation is not installed',
    'NoneType takes no arguments',
    'Found no NVIDIA driver',
    'SyncBatchNorm expected input tensor to be on GPU',
    'Inference tensors cannot be saved for backward',
    'need at least one array to concatenate',
    "KeyError: 'mask'",
    'There is no valid anchor inside the image boundary',
    'interp2d has been removed in SciPy 1.14.0',
    'Watchdog caught collective operation timeout',
    'DataLoader worker … is killed by signal: Bus error',
}


def messages() -> Iterator[str]:
    """What stands between backquotes in the first column, apart from options and the like."""
    for line in PAGE.read_text().splitlines():
        if line.startswith('| ') and not line.startswith(('| message', '|---')):
            first = re.split(r'(?<!\\)\|', line)[1]
            yield from (span for span in re.findall(r'`([^`]+)`', first) if ' ' in span)


def literals() -> Iterator[str]:
    """Yield every string of the package, its commands and the tools; `…` stands for the values of an f-string."""
    for path in [*ROOT.glob('mkd_plugin/**/*.py'), *ROOT.glob('mkd_cli/*.py'), *ROOT.glob('tools/**/*.py')]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield ''.join(part.value if isinstance(part, ast.Constant) else '…' for part in node.values)
    yield from (path.read_text() for path in ROOT.glob('tools/*.sh'))


def found(message: str, strings: list[str]) -> bool:
    """Whether a string says this; `…` of the page is anything."""
    pattern = re.compile('.*'.join(map(re.escape, message.split('…'))), re.DOTALL)
    return any(pattern.search(string) for string in strings)


def test_page__names_messages_that_there_are():
    strings = list(literals())
    listed = list(messages())
    assert len(listed) > 40
    assert [message for message in listed if message not in FOREIGN and not found(message, strings)] == []


def test_foreign_messages__are_on_the_page():
    assert set(messages()) >= FOREIGN


def test_found__takes_no_other_words():
    assert found('a … c', ['it is a … c.']) and found('a … c', ['a b c'])
    assert not found('a … d', ['a b c']) and not found('a b', ['a … b'])
