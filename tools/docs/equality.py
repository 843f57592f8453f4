"""Write docs/equality.md from docs/equality/report.json: ``python tools/docs/equality.py``."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'benchmarks'))
from check_equality import HEAD, line_of  # noqa: E402  (a script, no package)

PAGE, REPORT = ROOT / 'docs' / 'equality.md', ROOT / 'docs' / 'equality' / 'report.json'

TEXT = """<!-- Made by tools/docs/equality.py: change that, not this page. -->
# Equality with other libraries

```bash
OMP_NUM_THREADS=1 .venv/bin/python benchmarks/check_equality.py [--sizes ti s b l h] [--json docs/equality/report.json]
python tools/docs/equality.py
```

The script draws random weights in the other library's class, loads its state dict with `load_backbone`, and runs the same
random image through both, in float32 on the CPU. The figure is the largest difference over the largest magnitude of the tokens,
at 224 px and at a size that is not square (192 × 256; 196 × 252 with patches of 14 px). Then our network is exported and
compared with the original state dict.

{table}

{ran}

{left_out}
"""


def page() -> str:
    """The page, from the committed figures."""
    report = json.loads(REPORT.read_text())
    rows = report['rows']
    worst = max((error for row in rows for error in row['errors'].values() if error is not None), default=0.0)
    versions = ', '.join(f'{name} {number}' for name, number in report['versions'].items())
    threads = f'{report["threads"]} thread{"s" if report["threads"] > 1 else ""}'
    ran = (
        f'`{report["command"]}` in {report["seconds"]} s with {threads}; Python {report["python"]}, {versions}. The largest '
        f'figure is {worst:.1e}; the script allows {report["tolerance"]:.0e}.'
    )
    left_out = (
        f'Not run at full size: {"; ".join(report["not_run"]) or "none"}. Tiny networks of all these kinds are compared in '
        '`tests/unit/interop/test_export.py` and `test_formats.py`. `pytest -m slow '
        'tests/integration/commands/test_check_equality.py` runs every line.'
    )
    table = '\n'.join([HEAD, *(line_of(row, report['tolerance']) for row in rows)])
    return TEXT.format(table=table, ran=textwrap.fill(ran, 130), left_out=textwrap.fill(left_out, 130))


if __name__ == '__main__':
    PAGE.write_text(page())
    print(PAGE)
