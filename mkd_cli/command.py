"""What all commands share: the parser, its messages, and the handling of errors."""

from __future__ import annotations

import argparse
import difflib
import hashlib
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, NoReturn

from mkd_cli.environment import explain_missing_module

USAGE_ERROR = 2
INTERRUPTED = 130
MOST_LINES = 12  # of a message
LONGEST = 2000  # characters of a line
OURS = ('mkd_plugin', 'mkd_cli', 'projects')


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Append the default of every option, unless its help text names it already."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ''
        if not action.option_strings or 'default' in text or isinstance(action, argparse._HelpAction):
            return text
        if action.required:
            return f'{text} (required)'
        if isinstance(action, argparse._StoreTrueAction):
            return f'{text} (default: off)'
        if isinstance(action.default, (list, tuple)):
            return f'{text} (default: {",".join(map(str, action.default)) or "none"})'
        return text if action.default is argparse.SUPPRESS else f'{text} (default: %(default)s)'


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence, with the nearest name."""

    def __init__(self, *, prog: str | None = None, description: str | None = None) -> None:
        super().__init__(prog=prog, description=description, formatter_class=HelpFormatter)

    def parse_all(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse all arguments; exit with code 2 on an unknown one."""
        if all(action.nargs != argparse.REMAINDER for action in self._actions):
            for word in arguments:  # before argparse, which would complain about missing arguments first
                name = word.partition('=')[0]
                if name.startswith('--') and not any(known.startswith(name) for known in self._option_string_actions):
                    self.unknown(word)
        found, unknown = self.parse_known_args(arguments)
        if unknown:
            self.unknown(unknown[0])
        return found

    def unknown(self, word: str) -> NoReturn:
        """Exit with the nearest option."""
        kind = 'option' if word.startswith('-') else 'argument'
        hint = did_you_mean(word.partition('=')[0], self._option_string_actions) or f' See {self.prog} --help.'
        self.error(f'unknown {kind} {word}.{hint}')

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            hint = did_you_mean(str(value), names)
            raise argparse.ArgumentError(action, f'unknown value {value!r}.{hint} Choose from {", ".join(names)}.')

    def error(self, message: str) -> NoReturn:
        """Print one sentence and exit."""
        self.exit(USAGE_ERROR, '' if said_by_another(message) else f'error: {escaped(shortened(message))}\n')


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a sentence with the nearest known name, or nothing if none is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f' Did you mean {close[0]!r}?' if close else ''


def at_least(least: int) -> Callable[[str], int]:
    """Return the parser of a whole number that must not be less than ``least``."""

    def parse(text: str) -> int:
        if not text.removeprefix('-').isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f'{text!r} is not allowed: give a whole number of at least {least}.')
        return int(text)

    return parse


def integers(text: str) -> tuple[int, ...]:
    """Parse '10,20' into (10, 20): different numbers from 1."""
    found = tuple(at_least(1)(part) for part in text.split(','))
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f'{text!r} is not allowed: give each number once.')
    return found


def numbers(text: str) -> tuple[float, ...]:
    """Parse '0.1,0.3' into (0.1, 0.3): finite numbers."""
    try:
        found = tuple(float(part) for part in text.split(','))
    except ValueError:
        found = ()
    if not found or not all(math.isfinite(number) for number in found):
        raise argparse.ArgumentTypeError(f'{text!r} is not allowed: give numbers, separated by commas.')
    return found


def network_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Parse ``--network``. Raises ValueError for an option that networks do not have."""
    from mkd_plugin.models.vit import VisionTransformer
    from mkd_plugin.registry import check_names, check_values, parameters_of
    from mkd_plugin.utils.configs import parse_options

    options, (parameters, _) = parse_options(pairs), parameters_of(VisionTransformer)
    parameters = {**parameters, 'num_heads': int}
    check_names('--network', options, parameters)
    check_values('--network', options, parameters)
    return options


def usable_device(name: str | None) -> str:
    """Return the device to compute on, by default a GPU if there is one. Raises ValueError if it cannot be used."""
    import torch

    if name is None:
        return 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        torch.empty(1, device=name).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f'--device {name}: nothing can be computed there. Use cpu, cuda or cuda:N; torch can use '
            f'{torch.cuda.device_count()} GPUs here.'
        ) from error
    return name


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe networks whose files do not."""
    parser.add_argument(
        '--network',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='options that the files do not state, such as num_heads=12 or img_size=224',
    )
    parser.add_argument(
        '--pixels',
        choices=['imagenet', 'clip', 'half'],
        help='pixel statistics of files that do not state them (default: those usual for the format)',
    )


def progress_bar(console: Any) -> Any:
    """Return rich's progress bar, with the number of what is done."""
    from rich.progress import MofNCompleteColumn, Progress

    return Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console)


def script(name: str) -> Callable[..., int]:
    """Return the `main` of a command's module: the entry point of its script in `tools/`."""

    def main(arguments: Sequence[str] | None = None) -> int:
        return run_command(import_module(f'mkd_cli.{name}'), sys.argv[1:] if arguments is None else arguments)

    return main


def run_command(module: ModuleType, arguments: Sequence[str], prog: str | None = None) -> int:
    """Parse the arguments, run a command and return its exit code: 2 for a user's mistake.

    A mistake is printed as one message; `--debug` shows its traceback. Our own bugs and errors of other packages keep theirs.
    """
    parser = Parser(prog=prog, description=module.__doc__)
    module.add_arguments(parser)
    parser.add_argument('--debug', action='store_true', help='show the traceback of an error')
    args = parser.parse_all(arguments)
    args.arguments = list(arguments)
    try:
        code: int = module.run(args)
        return code
    except KeyboardInterrupt:
        print('Interrupted.', file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        message = message_for_user(error)
        if message is None or args.debug:
            raise
        if not said_by_another(message):
            print(f'error: {escaped(shortened(message))}', file=sys.stderr)
        return USAGE_ERROR


def run_resumable(main: Callable[[], int]) -> int:
    """Call the main function of a program that continues when it is started again; return its exit code, also after Ctrl-C."""
    try:
        return main()
    except KeyboardInterrupt:
        print('Interrupted. Rerun the command to resume.', file=sys.stderr)
        return INTERRUPTED


def shortened(message: str) -> str:
    """Cut a message that would fill the terminal, such as one of a host with a line for every tensor."""
    lines = [line if len(line) <= LONGEST else f'{line[:LONGEST]} …' for line in message.splitlines()]
    if len(lines) <= MOST_LINES:
        return '\n'.join(lines)
    rest = f'… {len(lines) - MOST_LINES + 1} more lines: add --debug to see them.'
    return '\n'.join([*lines[: MOST_LINES - 1], rest])


def escaped(text: str) -> str:
    """Replace what is no printable character: a name in a file may hold the escape sequences of a terminal."""
    return ''.join(
        letter if letter.isprintable() or letter == '\n' else letter.encode('unicode_escape').decode()
        for letter in text
    )


def said_by_another(message: str) -> bool:
    """Whether another process of this run, on this machine, prints the same message."""
    attempt = os.environ.get('TORCHELASTIC_ERROR_FILE')  # ATTEMPT/RANK/error.json, in a folder that torchrun deletes
    if attempt:
        digest = hashlib.sha256(message.encode(errors='replace')).hexdigest()
        try:
            (Path(attempt).parents[1] / f'{digest}.said').touch(exist_ok=False)
        except FileExistsError:
            return True
        except OSError:
            return False
    started = sys.modules.get('torch.distributed')  # before the processes know each other, all read the same files
    alone = any(os.environ.get(name, '0') != '0' for name in ('SLURM_LOCALID', 'OMPI_COMM_WORLD_LOCAL_RANK'))
    return alone and not (started is not None and started.is_initialized())


def message_for_user(error: Exception) -> str | None:
    """Return the message of a user's mistake, or None if the error needs its traceback."""
    if isinstance(error, ModuleNotFoundError) and not raised_by_us(error.__traceback__):
        return explain_missing_module(error)
    if isinstance(error, OSError):
        return str(error) if error.filename is None else f'{error.filename}: {error.strerror}'
    if isinstance(error, (ValueError, ImportError)) and raised_by_us(error.__traceback__):
        return str(error)
    return None


def raised_by_us(trace: TracebackType | None) -> bool:
    """Whether the innermost frame of a traceback is code of this package."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get('__name__')).split('.')[0] in OURS
