"""compat.install: everything it changes, once."""

from __future__ import annotations

import logging
import sys

import mmengine.logging
import pytest
from mmengine.logging import MMLogger
from mmengine.runner import CheckpointLoader

from mkd_plugin import compat
from mkd_plugin.compat.patches import OpsFinder, TerminalFilter


@pytest.fixture
def logger(tmp_path, request):
    """A logger with a file; it is the current one during the test."""
    made = MMLogger.get_instance(request.node.name, log_file=str(tmp_path / 'run.log'))
    yield made
    MMLogger._instance_dict.pop(request.node.name)


def test_install__again_changes_nothing():
    def effects():
        finders = [finder for finder in sys.meta_path if isinstance(finder, OpsFinder)]
        return len(finders), MMLogger.__init__, mmengine.logging.print_log, sorted(map(str, CheckpointLoader._schemes))

    before = effects()
    compat.install()
    assert effects() == before and before[0] == 1


def test_terminal__shows_the_training_and_the_file_has_everything(logger, tmp_path, capsys):
    for handler in logger.handlers:
        if type(handler) is logging.StreamHandler:
            handler.setStream(sys.stdout)
    lines = ['paramwise_options -- backbone.x:lr=1', 'Config:\na = 1', '\n' + '-' * 60 + '\nSystem environment:\n']
    for line in (*lines, 'Epoch(train) [1][2/2] loss: 0.1'):
        logger.info(line)
    shown = capsys.readouterr().out
    assert shown.count('INFO') == 1 and 'loss: 0.1' in shown
    kept = (tmp_path / 'run.log').read_text()
    assert all(line.strip() in kept for line in lines) and 'loss: 0.1' in kept


def test_terminal__shows_everything_where_there_is_no_file(capsys):
    logger = MMLogger(name='no file')
    record = logging.LogRecord('x', logging.INFO, '', 0, 'Config:\na = 1', (), None)
    assert TerminalFilter(logger).filter(record)


def test_print_log__debug_messages_go_to_the_file(logger, tmp_path, capsys):
    mmengine.logging.print_log('Could not import OneDL', level=logging.DEBUG)
    mmengine.logging.print_log('an ordinary line')
    assert capsys.readouterr().out == 'an ordinary line\n'
    assert 'Could not import OneDL' in (tmp_path / 'run.log').read_text()
