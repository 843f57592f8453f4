"""Look at a page with a real browser: take a picture, measure it in a narrow window, read its console.

python tools/docs/browser.py PAGE PICTURE.png [--width 1200] [--height 1600] [--dark]
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape, unescape
from pathlib import Path
from typing import Any

COMMAND = ('chromium', '--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', '--enable-logging=stderr')
SMALLEST = 500  # pixels: a window of Chromium is never narrower; a frame can be

# Runs in a page around the one that is examined.
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
    """Whether Chromium is installed."""
    return shutil.which(COMMAND[0]) is not None


def screenshot(page: Path, picture: Path, *, width: int = 1200, height: int = 1600, dark: bool = False) -> list[str]:
    """Save the upper part of a page as PNG. Returns what the page wrote to the console.

    Args:
        page: HTML file.
        picture: PNG file to write.
        width: Pixels; narrow windows are shown in a frame.
        height: Pixels.
        dark: Prefer a dark colour scheme.
    """
    options = [f'--screenshot={picture.absolute()}', f'--blink-settings=preferredColorScheme={0 if dark else 1}']
    if width >= SMALLEST:
        return browse(page, f'--window-size={width},{height}', *options)[1]
    from PIL import Image

    with framed(page, width, height) as around:
        console = browse(around, f'--window-size={SMALLEST},{height}', *options)[1]
    with Image.open(picture) as whole:
        whole.crop((0, 0, width, height)).save(picture)
    return console


def look(page: Path, *, width: int) -> tuple[dict[str, Any], list[str]]:
    """Open a page in a frame of the given width.

    Returns:
        ``window`` and ``content``: widths; ``figures``: (width, height) of each; ``images``: pixel images in them;
        ``pictures``: (width, height) of each ``img`` that could be decoded; ``enlarged``: figures in the dialog after a
        click on the first. And what was written to the console.
    """
    with framed(page, width, 800, script=LOOK) as around:
        dom, console = browse(around, '--dump-dom')
    found = re.search(r'<pre[^>]*>(.*?)</pre>', dom, flags=re.DOTALL)
    assert found is not None
    return json.loads(unescape(found[1])), console


@contextmanager
def framed(page: Path, width: int, height: int, *, script: str = '') -> Iterator[Path]:
    """A page that shows another one in a frame."""
    content = escape(page.read_text(encoding='utf-8'))
    frame = f'<iframe width="{width}" height="{height}" style="border: 0; display: block" srcdoc="{content}"></iframe>'
    head = '<!DOCTYPE html><meta name="color-scheme" content="light dark"><body style="margin: 0">'
    with tempfile.TemporaryDirectory() as folder:
        around = Path(folder, 'around.html')
        around.write_text(f'{head}{frame}<pre hidden></pre><script>{script}</script>', encoding='utf-8')
        yield around


def browse(page: Path, *options: str) -> tuple[str, list[str]]:
    """Run Chromium. Returns its output, and the page's lines on the console."""
    with tempfile.TemporaryDirectory() as profile:
        command = [*COMMAND, f'--user-data-dir={profile}', *options, page.absolute().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if ':CONSOLE:' in line]


def main() -> int:
    """Take a picture; return 1 if there is no browser, or if the page writes to the console."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('page', type=Path, help='HTML file')
    parser.add_argument('picture', type=Path, help='PNG file to write')
    parser.add_argument('--width', type=int, default=1200, help='pixels (default: %(default)s)')
    parser.add_argument('--height', type=int, default=1600, help='pixels (default: %(default)s)')
    parser.add_argument('--dark', action='store_true', help='prefer a dark colour scheme')
    args = parser.parse_args()
    if not available():
        print('Chromium is not installed. Install it with: apt-get install chromium', file=sys.stderr)
        return 1
    console = screenshot(args.page, args.picture, width=args.width, height=args.height, dark=args.dark)
    print('\n'.join(console) or f'{args.picture}: the page wrote nothing to the console')
    return 1 if console else 0


if __name__ == '__main__':
    sys.exit(main())
