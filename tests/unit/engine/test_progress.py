"""The progress bar: on a real pseudo-terminal, and that nothing changes where there is none."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import sys
import threading

import pytest

from mkd_plugin.engine.progress import ProgressHook, brief, is_interactive

WIDTH, HEIGHT = 118, 400  # no line scrolls away
CONTROL = re.compile(r'\x1b\[(\?25[lh]|\d*[A-Za-z]|[\d;]*m)|\r\n|\r|\n|[^\x1b\r\n]+')


class Terminal:
    """A pseudo-terminal in place of standard output and error (or of error alone), and what it shows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, stdout: bool = True) -> None:
        self.master, slave = pty.openpty()
        self.raw = b''
        self.file = os.fdopen(slave, 'w', buffering=1, encoding='utf-8')
        for name in ('stdout', 'stderr') if stdout else ('stderr',):
            monkeypatch.setattr(sys, name, self.file)
        for name, value in (('TERM', 'xterm'), ('COLUMNS', str(WIDTH)), ('LINES', str(HEIGHT))):
            monkeypatch.setenv(name, value)
        monkeypatch.delenv('CI', raising=False)
        self.reader = threading.Thread(target=self.read, daemon=True)  # a test that fails must end
        self.reader.start()

    def read(self) -> None:
        with contextlib.suppress(OSError):  # Linux's way to say that the other side is closed
            while chunk := os.read(self.master, 65536):
                self.raw += chunk

    def close(self) -> str:
        """All that was written."""
        self.file.close()
        self.reader.join(30)
        os.close(self.master)
        return self.raw.decode()


def screen(text: str) -> list[str]:
    """What is on a terminal after ``text``: the few controls that rich uses."""
    lines, row, column = [''], 0, 0
    for token in (match[0] for match in CONTROL.finditer(text)):
        if token in ('\r\n', '\n'):
            row, column = row + 1, 0
            lines += [''] * (row + 1 - len(lines))
        elif token == '\r':
            column = 0
        elif token.startswith('\x1b'):
            if token.endswith('A'):
                row -= int(token[2:-1] or 1)
                assert row >= 0
            elif token.endswith('K'):
                assert token == '\x1b[2K'
                lines[row] = ''
            else:
                assert token.endswith(('m', 'h', 'l')), token
        else:
            lines[row] = lines[row][:column].ljust(column) + token + lines[row][column + len(token) :]
            column += len(token)
    return [line.rstrip() for line in lines]


class Fake(io.StringIO):
    """Says that it is a terminal, and cannot be written to once its window is closed."""

    closed_window = False

    def isatty(self):
        return True

    def write(self, text):
        if self.closed_window:
            raise OSError(5, 'Input/output error')
        return super().write(text)


def stop(runner, outputs):
    raise KeyboardInterrupt


LINE = re.compile(r'\d\d/\d\d \d\d:\d\d:\d\d - mmengine - INFO - .*')
BAR = re.compile(
    r'stage (\d)/2  epoch (\d)/4  (\d)/6 \S+ +loss [\d.e-]+  lr \d\.\de[-+]\d\d  [\d.]+ img/s \d+:\d\d:\d\d left'
)


def test_progress_hook__a_bar_below_whole_lines_of_the_log(tmp_path, tiny_run, train, monkeypatch):
    cfg = tiny_run(tmp_path, log_level='INFO', interval=2)
    monkeypatch.setattr('mkd_plugin.engine.progress.REFRESH', 0.0)
    terminal = Terminal(monkeypatch)
    runner = train(cfg)
    handlers = [handler.stream for handler in runner.logger.handlers]
    assert sys.stderr is terminal.file is sys.stdout and terminal.file in handlers
    written = terminal.close()
    shown = screen(written)
    (bar,) = [line for line in shown if 'left' in line]
    assert BAR.fullmatch(bar).groups() == ('2', '4', '6')
    assert shown.index(bar) > max(number for number, line in enumerate(shown) if 'Epoch(train)' in line)
    # rich breaks a line at the terminal's width: together they are the log's lines, none of them torn
    (log,) = tmp_path.glob('*/*.log')
    text = ' '.join(' '.join(shown).split())
    wanted = [line for line in log.read_text().splitlines() if 'Epoch(train)' in line]
    assert len(wanted) == 12
    for line in wanted:
        assert ' '.join(line.split('INFO - ')[1].split()) in text
    plain = re.sub(r'\x1b\[[\d;]*m', '', written)
    seen = {match.groups() for match in BAR.finditer(plain)}
    assert {('1', '1', '3'), ('1', '2', '6'), ('2', '3', '1'), ('2', '4', '5')} <= seen
    assert written.count('\x1b[?25l') == written.count('\x1b[?25h') == 1


def test_progress_hook__an_interrupted_run_gives_the_terminal_back(tmp_path, tiny_run, train, monkeypatch):
    cfg = tiny_run(tmp_path, 'iterations', interval=2)
    terminal = Terminal(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(cfg, at=(8, stop))
    assert sys.stderr is terminal.file is sys.stdout
    written = terminal.close()
    assert (
        written.index('\x1b[?25l') < written.rindex('\x1b[?25h') and 'stage 1/2  iteration 7/24' in screen(written)[-2]
    )


def test_progress_hook__the_log_in_a_file_stays_as_it_is(tmp_path, tiny_run, train, monkeypatch):
    cfg = tiny_run(tmp_path, log_level='INFO')
    out = io.StringIO()
    monkeypatch.setattr(sys, 'stdout', out)
    terminal = Terminal(monkeypatch, stdout=False)
    train(cfg)
    assert 'img/s' in terminal.close() and 'img/s' not in out.getvalue()
    lines = [line for line in out.getvalue().splitlines() if 'Epoch(train)' in line]
    assert len(lines) == 4 and '\x1b[2K' not in out.getvalue()


def test_progress_hook__resumed_where_the_run_is(tmp_path, tiny_run, train, monkeypatch):
    cfg = tiny_run(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(cfg, at=(9, stop))
    monkeypatch.setattr('mkd_plugin.engine.progress.REFRESH', 0.0)
    terminal = Terminal(monkeypatch)
    train(cfg)
    first, *_ = re.findall(r'epoch \d/4  \d/6', terminal.close())
    assert first == 'epoch 2/4  0/6'


def test_progress_hook__fits_into_eighty_columns(tmp_path, tiny_run, train, monkeypatch):
    cfg = tiny_run(tmp_path)
    terminal = Terminal(monkeypatch)
    monkeypatch.setenv('COLUMNS', '80')
    train(cfg)
    bar = screen(terminal.close())[-2]
    assert len(bar) <= 80 and '\u2026' not in bar
    assert re.fullmatch(r'stage 2/2 epoch 4/4 6/6 \S+ loss \S+ lr \S+ \S+ img/s \d:\d\d:\d\d', bar)


def test_progress_hook__a_terminal_that_is_gone_does_not_stop_the_run(tmp_path, tiny_run, train, monkeypatch):
    stream = Fake()
    monkeypatch.setattr(sys, 'stderr', stream)
    monkeypatch.setattr('mkd_plugin.engine.progress.REFRESH', 0.0)
    monkeypatch.delenv('CI', raising=False)
    monkeypatch.setenv('COLUMNS', '80')

    def close_window(runner, outputs):
        stream.closed_window = True

    assert train(tiny_run(tmp_path), at=(8, close_window)).iter == 24
    assert 'epoch 2/4 1/6' in screen(stream.getvalue())[-1]
    assert sys.stderr is stream


def test_brief__keeps_what_matters():
    assert [brief(number) for number in (0.12345, 12.345, 99.96, 123.45, 123456.7)] == [
        '0.123', '12.3', '100', '123', '123457',
    ]  # fmt: skip


@pytest.mark.parametrize('enabled', [True, False])
def test_progress_hook__nothing_where_nobody_looks_or_wants_it(tmp_path, tiny_run, train, monkeypatch, enabled):
    cfg = tiny_run(tmp_path, **{'default_hooks.progress.enabled': enabled})
    terminal = None
    error = io.StringIO()
    if enabled:
        monkeypatch.setattr(sys, 'stderr', error)
        monkeypatch.setenv('FORCE_COLOR', '1')  # rich would take it for a terminal
    else:
        terminal = Terminal(monkeypatch)
    runner = train(cfg)
    (hook,) = [hook for hook in runner.hooks if isinstance(hook, ProgressHook)]
    assert hook.bar is None and hook.redirected == []
    assert error.getvalue() == '' and (terminal is None or terminal.close() == '')


@pytest.mark.parametrize(
    'stream, environment, wanted',
    [
        (Fake(), {'TERM': 'xterm'}, True),
        (Fake(), {}, True),
        (Fake(), {'CI': 'false'}, True),
        (Fake(), {'CI': 'true'}, False),
        (Fake(), {'TERM': 'dumb'}, False),
        (io.StringIO(), {'FORCE_COLOR': '1', 'TERM': 'xterm'}, False),
        (None, {}, False),
    ],
)
def test_is_interactive__at_a_terminal_that_is_one(stream, environment, wanted):
    assert is_interactive(stream, environment) == wanted
