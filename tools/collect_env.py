"""Print the environment, for a report of a problem: `python tools/collect_env.py`."""

from __future__ import annotations

from mkd_plugin.preflight.environment import describe_environment

if __name__ == '__main__':
    for name, value in describe_environment().items():
        print(f'{name}: {value}')
