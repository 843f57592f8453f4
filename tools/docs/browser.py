"""A page as a real browser shows it: a picture, its size in a narrow window, what it writes to the console.

python tools/docs/browser.py PAGE PICTURE.png [--width 1200] [--height 1600]
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from html import escape, unescape
from pathlib import Path
from typing import Any

COMMAND = ('chromium', '--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', '--enable-logging=stderr')

# Runs in a page around the one that is looked at: a window of Chromium is at least 500 pixels wide, a frame need not be.
LOOK = """
addEventListener('load', () => {
  const page = document.querySelector('iframe').contentDocument;
  const sizes = (kind) => [...page.querySelectorAll(kind)].map((of) => of.getBoundingClientRect());
  const figures = sizes('svg');
  const pictures = sizes('img').filter((box, index) => page.querySelectorAll('img')[index].naturalWidth);
  const first = page.querySelector('.panels button');
  if (first) first.click();
  document.querySelector('pre').textContent = JSON.stringify({
    window: page.documentElement.clientWidth,
    content: page.documentElement.scrollWidth,
    figures: figures.map((box) => [box.width, box.height]),
    pictures: pictures.map((box) => [box.width, box.height]),
    images: [...page.querySelectorAll('image')].length,
    enlarged: page.querySelectorAll('dialog[open] svg').length,
  });
});
"""


def available() -> bool:
    """Whether there is a Chromium."""
    return shutil.which(COMMAND[0]) is not None


def screenshot(page: Path, picture: Path, *, width: int = 1200, height: int = 1600) -> list[str]:
    """Draw the upper part of a page as PNG. Returns what the page wrote to the console."""
    return browse(page, f'--window-size={width},{height}', f'--screenshot={picture.absolute()}')[1]


def look(page: Path, *, width: int) -> tuple[dict[str, Any], list[str]]:
    """Open a page in a frame so many pixels wide.

    Returns:
        ``window`` and ``content``: widths; ``figures``: (width, height) of each; ``images``: pixel images in them;
        ``pictures``: (width, height) of each ``img`` that could be read; ``enlarged``: figures in the dialog after a click on
        the first. And what was written to the console.
    """
    frame = (
        f'<iframe width="{width}" height="800" style="border: 0" srcdoc="{escape(page.read_text(encoding="utf-8"))}">'
    )
    with tempfile.TemporaryDirectory() as folder:
        around = Path(folder, 'around.html')
        around.write_text(f'<!DOCTYPE html><pre></pre>{frame}</iframe><script>{LOOK}</script>', encoding='utf-8')
        dom, console = browse(around, '--dump-dom')
    found = re.search(r'<pre>(.*?)</pre>', dom, flags=re.DOTALL)
    assert found is not None
    return json.loads(unescape(found[1])), console


def browse(page: Path, *options: str) -> tuple[str, list[str]]:
    """Run Chromium. Returns what it printed, and the page's lines on the console."""
    with tempfile.TemporaryDirectory() as profile:
        command = [*COMMAND, f'--user-data-dir={profile}', *options, page.absolute().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if ':CONSOLE:' in line]


def main() -> int:
    """Take a picture; 1 if there is no browser, or the page complains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('page', type=Path)
    parser.add_argument('picture', type=Path)
    parser.add_argument('--width', type=int, default=1200)
    parser.add_argument('--height', type=int, default=1600)
    args = parser.parse_args()
    if not available():
        print('There is no chromium: apt-get install chromium.', file=sys.stderr)
        return 1
    console = screenshot(args.page, args.picture, width=args.width, height=args.height)
    print('\n'.join(console) or f'{args.picture}; nothing on the console')
    return 1 if console else 0


if __name__ == '__main__':
    sys.exit(main())
