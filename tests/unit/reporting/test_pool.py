"""mkd_plugin.reporting.pool: order, what is said, and what an exception does."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import pytest
from rich.console import Console

from mkd_plugin.reporting.pool import ready, work_through


class Chores:
    """Jobs are letters; each needs those in its value."""

    def __init__(self, **needs: str) -> None:
        self.wanted, self.order = needs, []

    def needs(self, job: str) -> str:
        return self.wanted[job]

    def steps(self, job: str) -> float:
        return 1.0

    def do(self, job: str) -> None:
        if job == 'x':
            raise RuntimeError('x is broken')
        assert set(self.wanted[job]) <= set(self.order)
        self.order.append(job)


def do_all(chores: Chores, workers: int) -> str:
    printed = io.StringIO()
    with ThreadPoolExecutor(workers) as executor:
        work_through(
            executor, chores, list(chores.wanted), workers=workers, console=Console(file=printed, width=80),
            outcome=lambda job: f'{job} is done',
        )  # fmt: skip
    return printed.getvalue()


@pytest.mark.parametrize('workers', [1, 3])
def test_work_through__each_job_once_after_those_it_needs(workers):
    chores = Chores(d='bc', b='a', c='a', a='', e='d')
    printed = do_all(chores, workers)
    assert sorted(chores.order) == list('abcde')
    for number, job in enumerate(chores.order, start=1):
        assert f'[{number}/5] {job}: {job} is done' in printed or workers > 1
    assert printed.count('is done') == 5


def test_work_through__raises_what_a_job_raises():
    chores = Chores(a='', x='a', b='x')
    with pytest.raises(RuntimeError, match='x is broken'):
        do_all(chores, 1)
    assert chores.order == ['a']


def test_ready__waits_for_running_and_waiting_jobs():
    chores = Chores(a='', b='a', c='')
    assert ready(chores, ['a', 'b', 'c'], []) == ['a', 'c']
    assert ready(chores, ['b', 'c'], ['a']) == ['c']
    assert ready(chores, ['b', 'c'], []) == ['b', 'c']
