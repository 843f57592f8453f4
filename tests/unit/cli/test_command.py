"""Command lines: what parsing imports, help texts, nearest names, errors."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from mkd_cli import analyze, benchmark, convert, evaluate, train
from mkd_cli.command import HelpFormatter, Parser, escaped, run_command, shortened
from mkd_cli.main import COMMANDS, main
from mkd_plugin.preflight.config import read_config

HEAVY = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmpretrain', 'mkd_plugin', 'matplotlib', 'numpy', 'rich', 'timm')
PROBE = """
import json, sys
from mkd_cli.main import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print()
print(json.dumps(sorted(sys.modules)))
"""


def parser_of(name):
    parser = Parser()
    import_module(f'mkd_cli.{name.replace("-", "_")}').add_arguments(parser)
    return parser


@pytest.mark.parametrize('arguments', [['--help'], *([name, '--help'] for name in COMMANDS)], ids=' '.join)
def test_help__imports_nothing_heavy(arguments):
    done = subprocess.run([sys.executable, '-c', PROBE, *arguments], capture_output=True, text=True, check=True)
    modules = json.loads(done.stdout.splitlines()[-1])
    assert [name for name in HEAVY if name in modules] == []
    assert len(modules) < 300  # about 160; torch alone has 900
    assert done.stdout.startswith('usage: mkd ')


def test_help__lists_every_command(capsys):
    assert main(['--help']) == 0
    shown = capsys.readouterr().out
    assert all(f'  {name} ' in shown for name in COMMANDS)
    assert main([]) == 0


@pytest.mark.parametrize('name', COMMANDS)
def test_help__every_argument_has_a_text_and_every_option_its_default(name):
    parser = parser_of(name)
    formatter = HelpFormatter('mkd')
    for action in parser._actions:
        assert action.help, action.dest
        if action.option_strings and action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction):
            text = formatter._get_help_string(action)
            assert 'default' in text or '(required)' in text, action.dest
            assert 'default: None' not in text % vars(action), action.dest


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['trian'], "unknown command 'trian'. Did you mean 'train'?"),
        (['zzz'], "unknown command 'zzz'. See mkd --help."),
        (['--verson'], "unknown option '--verson'. See mkd --help."),
        (['evaluate', '--protocol-s', 'knn'], "unknown option --protocol-s. Did you mean '--protocols'?"),
        (['train', 'a.py', 'b.py'], 'unknown argument b.py.'),
        (['train', 'a.py', '--launcher', 'pytroch'], "Did you mean 'pytorch'? Choose from none, pytorch, slurm, mpi."),
        (['analyze', 'x.pth'], 'the following arguments are required: --data'),
        (['train', 'configs/dbot/dbot_digit.py'], 'the nearest are dbot/dbot_digits'),
        (['train', 'dbot:momentum-0.998'], "Did you mean 'momentum-0.9998'?"),
        (['train', 'dbot/dbot_digits', '--cfg-options', 'lr'], "'lr': give options as KEY=VALUE."),
        (['convert', 'x.pth', 'y.pth', '--to', 'timm', '--release', 'mae_bse'], "Did you mean 'mae_base'?"),
        (['inspect', 'none.pth'], 'There is no checkpoint'),
        (['make-digits', '/proc/none'], '/proc/none'),
    ],
)
def test_main__user_mistakes_are_one_sentence(arguments, message, capsys):
    try:
        code = main(arguments)
    except SystemExit as error:
        code = error.code
    shown = capsys.readouterr().err
    assert code == 2
    assert shown.startswith('error: ') and message in shown and 'Traceback' not in shown
    assert len(shown.splitlines()) == 1


def command(error):
    def run(args):
        if error == 'ours':
            read_config('nothing.py', {})
        if error == 'theirs':
            json.loads('{')
        if error == 'bug':
            raise KeyError('x')
        if error == 'file':
            Path('/nowhere/file').read_text()
        if error == 'module':
            import no_such_package  # noqa: F401
        if error == 'interrupt':
            raise KeyboardInterrupt
        return 0

    return SimpleNamespace(run=run, add_arguments=lambda parser: None, __doc__='A command.')


def test_run_command__a_users_mistake_has_no_traceback(capsys):
    assert run_command(command('ours'), []) == 2
    assert "no config is named 'nothing.py'" in capsys.readouterr().err
    assert run_command(command('file'), []) == 2
    assert capsys.readouterr().err == 'error: /nowhere/file: No such file or directory\n'
    assert run_command(command('module'), []) == 2
    assert "No module named 'no_such_package'" in capsys.readouterr().err
    assert run_command(command('interrupt'), []) == 130


def test_run_command__debug_shows_the_traceback():
    with pytest.raises(ValueError, match='no config is named'):
        run_command(command('ours'), ['--debug'])


@pytest.mark.parametrize(('error', 'kind'), [('theirs', json.JSONDecodeError), ('bug', KeyError)])
def test_run_command__other_errors_keep_their_traceback(error, kind):
    with pytest.raises(kind):
        run_command(command(error), [])


def test_said_by_another__each_message_is_printed_by_one_process_of_torchrun(tmp_path, monkeypatch, capsys):
    for rank in (0, 1):
        monkeypatch.setenv('TORCHELASTIC_ERROR_FILE', str(tmp_path / 'attempt_0' / str(rank) / 'error.json'))
        (tmp_path / 'attempt_0' / str(rank)).mkdir(parents=True)
        assert run_command(command('ours'), []) == 2
    assert capsys.readouterr().err.count('error:') == 1
    assert run_command(command('file'), []) == 2  # another message, of the second process
    assert capsys.readouterr().err.count('error:') == 1


def test_escaped__leaves_nothing_that_a_terminal_obeys():
    assert escaped('a\x1b[31m\r\nö…') == 'a\\x1b[31m\\r\nö…'


def test_shortened__cuts_what_fills_the_terminal():
    lines = shortened('\n'.join(map(str, range(35)))).splitlines()
    assert len(lines) == 12 and lines[-1] == '… 24 more lines: add --debug to see them.'
    assert shortened('a\nb') == 'a\nb'


def test_choices__are_those_of_the_package():
    """The parsers repeat them, because the package is slow to import."""
    from mkd_plugin.analysis.streaming import FLAVOURS
    from mkd_plugin.evaluation import KS, PROTOCOLS, SHOTS
    from mkd_plugin.interop.convert import PARTS
    from mkd_plugin.interop.export import TARGETS
    from mkd_plugin.interop.open_model import PIXEL_STATISTICS
    from mkd_plugin.interop.specs import SPEC_SYNTAX
    from mkd_plugin.preflight.distributed import VARIABLES
    from mkd_plugin.reporting.analysis import MEASUREMENTS, Settings
    from mkd_plugin.reporting.analysis.settings import DIRECTIONS

    assert (tuple(MEASUREMENTS), FLAVOURS) == (analyze.MEASUREMENTS, analyze.FLAVOURS)
    assert (analyze.DIRECTIONS, analyze.SPECIFICATION) == (DIRECTIONS, SPEC_SYNTAX)
    args = parser_of('analyze').parse_args(['x.pth', '--data', 'x'])
    assert set(vars(Settings())) - set(vars(args)) == {'shown'}
    assert all(getattr(args, name) in (value, list(value) if isinstance(value, tuple) else value)
               for name, value in vars(Settings()).items() if name != 'shown')  # fmt: skip
    assert (tuple(PROTOCOLS), KS, SHOTS) == (evaluate.PROTOCOLS, evaluate.KS, evaluate.SHOTS)
    assert convert.PARTS == PARTS and set(convert.TARGETS) == {'mkd', 'backbone', *TARGETS}
    assert set(train.LAUNCHERS) == {'none', *VARIABLES}
    (pixels,) = [action for action in parser_of('evaluate')._actions if action.dest == 'pixels']
    assert pixels.choices == list(PIXEL_STATISTICS)


def test_choices__of_the_benchmark_are_those_of_the_package():
    from mkd_plugin.reporting.benchmark import Settings
    from mkd_plugin.reporting.benchmark.suites import SUITES, TASKS
    from projects.digit_scenes.writing import NUM_SCENES

    assert (tuple(SUITES), tuple(TASKS)) == (benchmark.SUITES, benchmark.TASKS)
    args = parser_of('benchmark').parse_args(['x.pth'])
    for name in ('suite', 'seeds', 'against', 'recipe', 'arch', 'processes', 'pictures'):
        assert getattr(args, name) == getattr(Settings(), name)
    scenes = parser_of('make-digit-scenes').parse_args([])
    assert dict(train=scenes.train, val=scenes.val) == NUM_SCENES
