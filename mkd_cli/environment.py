"""What is wrong with the environment that a command runs in, as one sentence with the command that mends it."""

from __future__ import annotations

import hashlib
import sys
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def explain_missing_module(error: ModuleNotFoundError) -> str:
    """Return one sentence with the command that installs a missing module."""
    stale = stale_environment()
    if stale is not None:
        return f'{error}: {stale}'
    name = (error.name or '').split('.')[0]
    with suppress(ImportError):
        from mkd_plugin.compat.hosts import explain_missing_host

        message = explain_missing_host(name, 'this command')
        if message is not None:
            return message
    return f'{error}: install mkd_plugin with its dependencies, `pip install -e {ROOT}`, or the module alone.'


def stale_environment() -> str | None:
    """Return a sentence if the running environment was made by tools/setup_venv.sh from other requirements."""
    stamp = Path(sys.prefix, 'mkd_plugin.sha256')
    if not (ROOT / 'tools' / 'setup_venv.sh').is_file() or not stamp.is_file():
        return None
    sources = [*sorted((ROOT / 'requirements').glob('*.txt')), ROOT / 'setup.py', ROOT / 'mkd_plugin' / 'version.py']
    wanted = hashlib.sha256(f'{ROOT}\n'.encode() + b''.join(path.read_bytes() for path in sources)).hexdigest()
    if stamp.read_text().split()[:1] == [wanted]:
        return None
    return f'the environment {sys.prefix} is older than this checkout: run `bash {ROOT}/tools/setup_venv.sh`.'
