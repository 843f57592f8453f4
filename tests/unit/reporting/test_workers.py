"""Stopping jobs: the first Ctrl-C lets programs save, the second ends them."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import threading
import time

import pytest
from rich.console import Console

from mkd_plugin.reporting.workers import Processes, executor_of

STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('ready', flush=True)
time.sleep(600)
"""


def test_executor_of__a_second_ctrl_c_ends_programs_that_do_not_stop():
    processes, ready, codes = Processes(), queue.Queue(), []

    def job():
        process = processes.start([sys.executable, '-c', STUBBORN], stdout=subprocess.PIPE)
        ready.put(process.stdout.readline())
        codes.append(process.wait())
        process.stdout.close()

    def interrupt():
        while True:  # Python ignores one that arrives while it collects garbage
            time.sleep(0.3)
            if codes:
                return
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), executor_of('threads', 1, processes, Console(quiet=True)) as pool:
        future = pool.submit(job)
        assert ready.get(timeout=60) == b'ready\n'
        threading.Thread(target=interrupt).start()
        raise KeyboardInterrupt
    future.result(timeout=60)
    assert codes == [-signal.SIGKILL]


def test_executor_of__only_the_main_process_obeys_ctrl_c():
    """A terminal sends it to all; a worker that gets SIGTERM too would end without saving."""
    with executor_of('processes', 1, Processes(), Console(quiet=True)) as pool:
        assert pool.submit(signal.getsignal, signal.SIGINT).result(timeout=120) is signal.SIG_IGN
