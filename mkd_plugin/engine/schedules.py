"""Learning-rate schedules that follow the length of a run and of its stages."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from mmengine.runner import Runner

WARM_UP_SHARE = 0.1  # our choice: a shorter stage keeps its warm-up up to this share of its length


def fit_schedule(schedule: Sequence[dict[str, Any]], length: int, *, by_epoch: bool) -> list[dict[str, Any]]:
    """Fit mmengine's ``param_scheduler`` to a run or stage of another length than the one it was written for.

    What ends with the schedule ends with the run. A warm-up keeps its length, up to a tenth of the new one, or up to its
    share of the old one if that is more. Entries counted in the other unit than the run stay as they are.

    Args:
        schedule: Entries of ``param_scheduler``; the latest ``end`` is the length it was written for.
        length: Length of the run or stage, in epochs or iterations.
        by_epoch: Whether the run is counted in epochs.
    """
    own = [entry for entry in schedule if entry.get('by_epoch', True) == by_epoch]
    written = max((entry.get('end') or 0 for entry in own), default=0)

    def moved(point: int) -> int:
        return length if point == written else min(point, round(length * max(point / written, WARM_UP_SHARE)))

    fitted = []
    for entry in schedule:
        entry = copy.deepcopy(dict(entry))
        fitted.append(entry)
        if not written or entry.get('by_epoch', True) != by_epoch or length == written:
            continue
        begin, end = entry.get('begin', 0), entry.get('end')
        entry['begin'] = moved(begin)
        if end is not None:
            entry['end'] = moved(end)
            if entry.get('T_max') == end - begin:
                entry['T_max'] = entry['end'] - entry['begin']
            if entry['end'] <= entry['begin']:  # a warm-up that no longer has a step
                fitted.pop()
    return fitted


def schedule_of(cfg: Any) -> list[dict[str, Any]]:
    """Read the entries of a config's ``param_scheduler``."""
    schedule = cfg.get('param_scheduler') or []
    return [dict(schedule)] if isinstance(schedule, dict) else [dict(entry) for entry in schedule]


def restart_schedule(runner: Runner, schedule: list[dict[str, Any]]) -> None:
    """Start a schedule from the configured rates.

    mmengine's schedulers multiply the *current* rate, so a second warm-up chained behind a cosine would peak near zero.
    """
    for group in runner.optim_wrapper.param_groups:
        for key in [key for key in group if key.startswith('initial_')]:
            group[key.removeprefix('initial_')] = group[key]
    if schedule:
        runner.param_schedulers = runner.build_param_scheduler(schedule)
