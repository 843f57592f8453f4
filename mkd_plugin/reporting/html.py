"""Pages that need nothing else: no network, no library, no file beside them."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import matplotlib
from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 84rem; padding: 0 1rem 3rem; font: 1rem/1.5 system-ui, sans-serif; }
body { color: #1a1a1a; background: #fff; }
h1, h2 { line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin-top: 2.5rem; border-top: 1px solid #ccc; padding-top: 1rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1rem; padding: 0; list-style: none; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1rem; }
.panels button { display: block; width: 100%; padding: 0; border: 1px solid #ddd; background: #fff; cursor: zoom-in; }
.panels button:focus-visible { outline: 3px solid #06c; }
svg { display: block; width: 100%; height: auto; max-height: 40rem; }
.missing pre { overflow-x: auto; font-size: .8rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 16rem), 1fr)); gap: .5rem 1rem; }
.pictures { margin-bottom: 1rem; }
figure { margin: 0; max-width: 24rem; }
img { display: block; width: 100%; height: auto; }
dialog { box-sizing: border-box; width: 96vw; max-width: none; height: 94vh; max-height: none; padding: 1rem; }
dialog svg { min-width: 44rem; max-height: none; }
dialog > div { overflow: auto; height: calc(100% - 3rem); }
dialog button { float: right; font: inherit; }
.note { max-width: 60rem; }
.missing { border-left: 4px solid #c60; padding-left: .8rem; overflow-wrap: anywhere; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid #ddd; }
td { min-width: 4rem; max-width: 30rem; overflow-wrap: anywhere; }
"""

SCRIPT = """
const dialog = document.querySelector('dialog');
for (const button of document.querySelectorAll('.panels button')) {
  button.addEventListener('click', () => {
    dialog.querySelector('div').replaceChildren(button.querySelector('svg').cloneNode(true));
    dialog.showModal();
  });
}
dialog.querySelector('button').addEventListener('click', () => dialog.close());
dialog.addEventListener('click', (event) => { if (event.target === dialog) dialog.close(); });
"""


@dataclass(frozen=True)
class Panel:
    """A figure, and what it says to somebody who does not see it."""

    figure: Figure
    words: str


def document(title: str, heading: str, sections: Sequence[str], body: Iterable[str]) -> str:
    """A whole page.

    Args:
        title: In the window's title.
        heading: On top.
        sections: Headings that are linked to; each has ``anchor`` of itself as its id.
        body: Elements, as HTML.
    """
    links = ''.join(f'<li><a href="#{anchor(name)}">{escape(name)}</a></li>' for name in sections)
    parts = [
        f'<h1>{escape(heading)}</h1>',
        f'<nav aria-label="Figures"><ul>{links}</ul></nav>',
        *body,
        '<dialog aria-label="Enlarged figure"><button type="button">Close</button><div></div></dialog>',
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n'
        + '\n'.join(parts)
        + f'\n<script>{SCRIPT}</script>\n</body>\n</html>\n'
    )


def anchor(heading: str) -> str:
    """Where a link to a heading leads."""
    return re.sub(r'\W+', '-', heading.lower()).strip('-')


def panels(identity: str, figures: Iterable[Panel]) -> str:
    """Figures that can be enlarged, side by side or below each other as there is room.

    Args:
        identity: Of the group; no other of the page has it.
        figures: What is drawn.
    """
    return '\n'.join(
        [
            '<div class="panels">',
            *(panel_html(f'{identity}-{index}', panel) for index, panel in enumerate(figures)),
            '</div>',
        ]
    )


def panel_html(identity: str, panel: Panel) -> str:
    """A figure that can be enlarged."""
    svg = inline_svg(panel.figure, identity, panel.words)
    return f'<button type="button" aria-label="Enlarge: {escape(panel.words)}">{svg}</button>'


def inline_svg(figure: Figure, identity: str, words: str) -> str:
    """A figure as an ``svg`` element for the middle of a page.

    Args:
        figure: The figure.
        identity: Stands before every id in it: several figures share a page.
        words: Its alternative text.
    """
    text = io.StringIO()
    with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': identity, 'font.family': 'sans-serif'}):
        figure.savefig(text, format='svg', metadata={'Date': None})
    svg = text.getvalue()[text.getvalue().index('<svg') :]
    svg = re.sub(r'<metadata>.*?</metadata>', '', svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', '', svg)  # HTML has no namespaces
    svg = re.sub(r'\bid="', f'id="{identity}-', svg)
    svg = svg.replace('url(#', f'url(#{identity}-').replace('href="#', f'href="#{identity}-')
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1', svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r'\1', svg, count=1)
    head = f'<svg role="img" aria-labelledby="{identity}-words"'
    title = f'<title id="{identity}-words">{escape(words)}</title>'
    return re.sub(r'<svg([^>]*)>', lambda match: f'{head}{match[1]}>{title}', svg, count=1)


def table(rows: Sequence[Iterable[str]]) -> str:
    """Rows as a table; the first is its head."""
    head, *rest = ([escape(cell) for cell in row] for row in rows)
    lines = ''.join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rest
    )
    heads = ''.join(f'<th scope="col">{cell}</th>' for cell in head)
    return f'<div class="table"><table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>'
