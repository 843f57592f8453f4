"""What reading a file may cost before it is trusted: memory, and an end."""

from __future__ import annotations

import contextlib
import re
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SECONDS = 60.0  # far more than any file needs: what takes longer hangs
TIMES_SIZE, PLUS_BYTES = 8, 256 * 2**20
CEILING = 3 * 2**30


class Overrun(BaseException):
    """Stops a reader that takes too long; no Exception, so that readers do not take it for a damaged file."""


@contextlib.contextmanager
def bounded(size: int, *, seconds: float = SECONDS, more: int = 0) -> Iterator[None]:
    """Fail if the block takes more memory than a file of ``size`` bytes may, or hangs.

    ``more`` bytes are allowed besides. The block is stopped after ``seconds`` of processor time, and gets ``CEILING`` bytes
    of addresses, so that a failing test does not take the machine down.
    """

    def stop(*ignored: Any) -> None:
        raise Overrun

    before, size_now = memory('VmRSS', forget_peak=True), memory('VmSize')
    handler, limits = signal.signal(signal.SIGPROF, stop), resource.getrlimit(resource.RLIMIT_AS)
    if size_now:
        resource.setrlimit(resource.RLIMIT_AS, (size_now + CEILING, limits[1]))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    except Overrun:
        pass
    except Exception as error:
        assert not wanted_memory(error), (
            f'it asked for more than {CEILING:,} bytes for a file of {size:,} bytes: {error}'
        )
        raise
    finally:  # a refusal must be cheap, too
        left = signal.getitimer(signal.ITIMER_PROF)[0]
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        used, allowed = memory('VmHWM') - before, TIMES_SIZE * size + PLUS_BYTES + more
        assert left, f'it hung: it was stopped after {seconds} s of processor time'
        assert used <= allowed, f'it took {used:,} bytes for a file of {size:,} bytes, and {allowed:,} are allowed'


def wanted_memory(error: BaseException | None) -> bool:
    """Whether an exception, or what led to it, says that there was no memory left."""
    if error is None:
        return False
    texts = r"(can't|cannot|failed to) allocate|insufficient memory"
    said = isinstance(error, MemoryError) or re.search(texts, str(error), re.IGNORECASE) is not None
    return said or wanted_memory(error.__cause__ or error.__context__)


def memory(name: str, *, forget_peak: bool = False) -> int:
    """Bytes of resident memory, now (VmRSS) or at most (VmHWM); 0 where the system does not say."""
    with contextlib.suppress(OSError):
        if forget_peak:
            Path('/proc/self/clear_refs').write_text('5')
        for line in Path('/proc/self/status').read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return 0
