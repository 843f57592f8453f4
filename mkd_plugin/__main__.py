"""``python -m mkd_plugin SCRIPT [ARGUMENTS…]``: run a host's own script with this plugin imported first.

mmdet's and mmseg's ``tools/train.py`` and ``tools/test.py`` import their package before they read the config that names this
plugin; without compiled ops that import fails. The script sees its arguments, ``sys.argv`` and ``sys.path`` as if Python had
run it directly. ``mkd host`` does the same.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def main(arguments: list[str]) -> None:
    """Run the script ``arguments[0]`` with the other arguments. Raises SystemExit if there is no such script."""
    if not arguments or arguments[0] in ('-h', '--help'):
        sys.exit(f'{__doc__}\nNo script was given.' if not arguments else __doc__)
    script = Path(arguments[0])
    if not script.is_file():
        raise SystemExit(
            f'python -m mkd_plugin: there is no script {str(script)!r}. Give the path of one, such as '
            'tools/train.py in a checkout of mmdet; an installed mmdet has its own in the folder .mim/tools of the package.'
        )
    sys.argv = [str(script), *arguments[1:]]
    sys.path[0] = str(script.resolve().parent)
    runpy.run_path(str(script), run_name='__main__')


if __name__ == '__main__':
    main(sys.argv[1:])
