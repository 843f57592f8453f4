"""torchrun that passes the trainers' exit code on.

    python -m mkd_plugin.preflight.torchrun [torchrun's arguments] tools/train.py CONFIG --launcher pytorch

torchrun itself ends with 1 whatever its processes end with, so nobody could see that a trainer asks for being queued again.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import get_args_parser
from torch.distributed.run import main as torchrun

REQUEUE = 85  # the PreemptionHook's: "my state is saved, start me again"
SIGNALS = ('SIGTERM', 'SIGUSR1')  # those that it listens to
GRACE = 120  # seconds for a step and for saving; torchrun's own 30 are short for a big network


def exit_code(codes: Sequence[int]) -> int:
    """The exit code of a whole run.

    A process that fails is what counts. A trainer that asks for being queued again counts only if no other failed; those
    that torchrun itself ended after it (negative codes: by a signal) did not fail.
    """
    failed = [code for code in codes if code > 0 and code != REQUEUE]
    if failed:
        return failed[0]
    if REQUEUE in codes:
        return REQUEUE
    return 128 - codes[0] if codes else 1


def first_failure(error: ChildFailedError) -> str:
    """Which process ended the run, and what to do."""
    rank, failure = error.get_first_failure()
    if failure.exitcode >= 0:
        return f'rank {rank} failed with exit code {failure.exitcode}; its message is above. The others were ended.'
    advice = ' Most often the machine ran out of memory.' if failure.exitcode == -signal.SIGKILL else ''
    return (
        f'rank {rank} was killed by {signal.Signals(-failure.exitcode).name}, and the others were ended.{advice} Start again '
        'with --resume: the run goes on from its last checkpoint to the same result.'
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run torchrun; the code to exit with."""
    os.environ.setdefault('TORCH_ELASTIC_SHUTDOWN_TIMEOUT', str(GRACE))  # an older torchrun ignores it
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if '--signals-to-handle' in get_args_parser().format_help():  # else SIGUSR1 would end torchrun itself
        arguments = ['--signals-to-handle', 'SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1', *arguments]
    try:
        torchrun(arguments)
    except ChildFailedError as error:
        print(error, file=sys.stderr)
        code = exit_code([failure.exitcode for failure in error.failures.values()])
        if code != REQUEUE:
            print(f'[dist_train] {first_failure(error)}', file=sys.stderr)
        return code
    except SignalException as error:
        # torchrun has handed it on and waited for the trainers: they have saved, or the last checkpoint stands
        return REQUEUE if error.sigval.name in SIGNALS else 128 + int(error.sigval)
    return 0


if __name__ == '__main__':
    sys.exit(main())
