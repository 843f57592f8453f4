"""torchrun that returns the trainers' exit code.

    python -m mkd_cli.torchrun [torchrun's arguments] tools/train.py CONFIG --launcher pytorch

torchrun itself exits with 1 whatever its processes exit with, which would hide a trainer's request to be queued again.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

REQUEUE, INTERRUPTED = 85, 130  # exit codes of PreemptionHook: the state is saved, after a signal or after Ctrl-C
SIGNALS = ('SIGTERM', 'SIGUSR1')  # signals that it handles
GRACE = 120  # seconds for finishing a step and saving; torchrun's own 30 are too few for a large network


def exit_code(codes: Sequence[int]) -> int:
    """Return the exit code of a run from those of its processes.

    A failed process decides. A request to be queued again counts if no process failed; processes that torchrun ended after
    it (negative codes: by a signal) did not fail.
    """
    failed = [code for code in codes if code > 0 and code != REQUEUE]
    if failed:
        return failed[0]
    if REQUEUE in codes:
        return REQUEUE
    return 128 - codes[0] if codes else 1


def describe_failure(rank: int, code: int) -> str:
    """Describe the failure that ended a run, and what to do."""
    if code >= 0:
        return f'rank {rank} failed with exit code {code}; its message is above. The others were ended.'
    advice = ' Most often the machine ran out of memory.' if code == -signal.SIGKILL else ''
    return (
        f'rank {rank} was killed by {signal.Signals(-code).name}, and the others were ended.{advice} Start again with '
        '--resume: the run continues from its last checkpoint to the same result.'
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run torchrun; return the code to exit with."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser
    from torch.distributed.run import main as torchrun

    os.environ.setdefault('TORCH_ELASTIC_SHUTDOWN_TIMEOUT', str(GRACE))  # older versions of torchrun ignore it
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if '--signals-to-handle' in get_args_parser().format_help():  # else SIGUSR1 would end torchrun itself
        arguments = ['--signals-to-handle', 'SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1', *arguments]
    try:
        torchrun(arguments)
    except ChildFailedError as error:
        print(error, file=sys.stderr)
        code = exit_code([failure.exitcode for failure in error.failures.values()])
        if code not in (REQUEUE, INTERRUPTED):
            rank, failure = error.get_first_failure()
            print(f'[dist_train] {describe_failure(rank, failure.exitcode)}', file=sys.stderr)
        return code
    except SignalException as error:
        # torchrun has passed the signal on and waited for the trainers: they saved, or the last checkpoint stands
        return REQUEUE if error.sigval.name in SIGNALS else 128 + int(error.sigval)
    return 0


if __name__ == '__main__':
    sys.exit(main())
