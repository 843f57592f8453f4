"""The report as one HTML page that needs nothing else: no network, no library, no file beside it."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from mkd_plugin.analysis.report.images import ImageSet
from mkd_plugin.analysis.report.result import Report
from mkd_plugin.analysis.report.sections import Panel, Section, sections_of
from mkd_plugin.analysis.report.store import write_whole

__all__ = ['inline_svg', 'write_page']

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


def write_page(path: Path, report: Report, images: ImageSet) -> None:
    """Write the page.

    Args:
        path: Where to.
        report: What was measured.
        images: Those that attention is drawn on.
    """
    sections = list(sections_of(report, images))
    links = ''.join(f'<li><a href="#{anchor(of)}">{escape(of.caption.title)}</a></li>' for of in sections)
    names = ', '.join(report.models)
    body = [
        f'<h1>What distillation did: {escape(names)}</h1>',
        f'<nav aria-label="Figures"><ul>{links}</ul></nav>',
        '<h2>Models and settings</h2>',
        table(model_rows(report)),
        table(setting_rows(report)),
        '<p class="note">Click a figure, or press Enter on it, to enlarge it. Every number is in '
        '<code>report.json</code> beside this page.</p>',
        *(section_html(number, of) for number, of in enumerate(sections)),
        '<dialog aria-label="Enlarged figure"><button type="button">Close</button><div></div></dialog>',
    ]
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>Analysis of {escape(names)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n'
        + '\n'.join(body)
        + f'\n<script>{SCRIPT}</script>\n</body>\n</html>\n'
    )
    write_whole(path, page)


def section_html(number: int, section: Section) -> str:
    """Heading, figures, sentences."""
    caption = section.caption
    parts = [f'<h2 id="{anchor(section)}">{escape(caption.title)}</h2>']
    if section.panels:
        parts.append('<div class="panels">')
        parts += [panel_html(f'f{number}-{index}', panel) for index, panel in enumerate(section.panels)]
        parts.append('</div>')
    if section.table:
        parts.append(table(section.table))
    parts.append(
        f'<p class="note">{escape(caption.shows)} <b>How:</b> {escape(caption.computed)} '
        f'<b>What the papers found:</b> {escape(caption.found)}</p>'
    )
    parts += [
        f'<p class="missing"><b>{escape(model)}</b> is not here: {escape(reason)}</p>'
        for model, reason in section.missing.items()
    ]
    return '\n'.join(parts)


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


def anchor(section: Section) -> str:
    """Where a link leads."""
    return re.sub(r'\W+', '-', section.caption.title.lower()).strip('-')


def model_rows(report: Report) -> list[list[str]]:
    """The table of models."""
    rows = [['model', 'file', 'format', 'parameters', 'blocks × width, heads', 'image, patch', 'remarks']]
    for name, model in report.models.items():
        height, width = model['image_hw']
        rows.append(
            [
                name,
                model['source'],
                model['format'],
                f'{model["parameters"]:,}',
                f'{model["blocks"]} × {model["width"]}, {model["heads"]}',
                f'{height} × {width}, {model["patch_size"]}',
                '; '.join(model['notes']) or '–',
            ]
        )
    return rows


def setting_rows(report: Report) -> list[list[str]]:
    """The table of settings."""
    data, settings = report.data, report.settings
    fewer = f' ({data["wanted"]} were wanted)' if data['images'] < data['wanted'] else ''
    sizes = {tuple(model['image_hw']) for model in report.models.values()}
    each = ', of each network its own: distances in pixels compare only within a size' if len(sizes) > 1 else ''
    return [
        ['setting', 'value'],
        [
            'images',
            f'{data["images"]} of the {data["of"]} in {data["root"]}, evenly spread over the sorted names{fewer}',
        ],
        ['preparation', f'scaled (bicubic) to cover the network’s image size and cropped to its middle{each}'],
        ['flavour', settings['flavour']],
        ['package', f'mkd_plugin {report.version}'],
    ]


def table(rows: Sequence[Iterable[str]]) -> str:
    """Rows as a table; the first is its head."""
    head, *rest = ([escape(cell) for cell in row] for row in rows)
    lines = ''.join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rest
    )
    heads = ''.join(f'<th scope="col">{cell}</th>' for cell in head)
    return f'<div class="table"><table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>'
