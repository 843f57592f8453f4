"""Reports as self-contained HTML pages: a document of tables, figures and pictures, rendered by Jinja templates."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import matplotlib
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from mkd_plugin.utils.files import write_whole

MEDIA_TYPES = {'.webp': 'image/webp', '.png': 'image/png', '.jpg': 'image/jpeg'}


@dataclass(frozen=True)
class Panel:
    """A figure that the reader can enlarge."""

    figure: Figure  #: on a light background
    alt_text: str  #: what it shows, with its main numbers


@dataclass(frozen=True)
class Picture:
    """An image file (PNG, JPEG or WebP), which is embedded in the page."""

    path: Path
    caption: str
    alt_text: str

    @property
    def uri(self) -> str:
        """The file as a data URI."""
        content = base64.b64encode(self.path.read_bytes()).decode()
        return f'data:{MEDIA_TYPES[self.path.suffix]};base64,{content}'


@dataclass(frozen=True)
class Table:
    """A table; the first cell of each row is its heading. Lines after the first of a cell are shown smaller."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ''  #: units, and what the numbers are


@dataclass
class Section:
    """Figures and tables under one heading."""

    title: str
    group: str = ''  #: heading of several sections in the list of contents
    reading: str = ''  #: how to read the figures, with units
    panels: Sequence[Panel] = ()
    pictures: Sequence[Sequence[Picture]] = ()  #: in rows
    tables: Sequence[Table] = ()
    body: str = ''  #: HTML of a template; see ``render``
    notes: Mapping[str, str] = field(default_factory=dict)  #: label → paragraph
    missing: Mapping[str, str] = field(default_factory=dict)  #: name → reason; lines after the first as a block of text


@dataclass(frozen=True)
class Document:
    """A page: its answer, then the figures behind it, then the settings."""

    title: str  #: such as 'Representation analysis: 8 models'
    lead: str  #: one or two sentences: what was compared, and on what
    findings: Mapping[str, str]  #: the result in words: subject → sentence
    answer: Section  #: tables of the numbers that matter
    sections: Sequence[Section]


def write_page(path: Path, document: Document) -> None:
    """Write a page that needs no other file and no network."""
    write_whole(path, render('report.html.j2', document=document))


def render(template: str, **values: Any) -> Markup:
    """Fill a template of this package; text in the values is escaped."""
    return Markup(environment().get_template(template).render(**values))


@cache
def texts(name: str) -> Any:
    """Prose and labels of a kind of report, from the YAML file of that name beside the templates."""
    return yaml.safe_load((files('mkd_plugin.reporting') / 'templates' / f'{name}.yml').read_text(encoding='utf-8'))


@cache
def environment() -> Environment:
    """The Jinja environment of all pages; text is escaped."""
    found = Environment(
        loader=PackageLoader('mkd_plugin.reporting'),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(anchor=anchor, brief=brief, inline_svg=inline_svg, without_folders=without_folders)
    return found


def anchor(heading: str) -> str:
    return re.sub(r'\W+', '-', heading.lower()).strip('-')


def inline_svg(panel: Panel, identity: str) -> Markup:
    """Return a figure as an ``svg`` element. Every id in it starts with ``identity``, because figures share a page."""
    text = io.StringIO()
    with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': identity, 'font.family': 'sans-serif'}):
        panel.figure.savefig(text, format='svg', metadata={'Date': None})
    svg = text.getvalue()[text.getvalue().index('<svg') :]
    svg = re.sub(r'<metadata>.*?</metadata>', '', svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', '', svg)  # HTML has no namespaces
    svg = re.sub(r'\bid="', f'id="{identity}-', svg)
    svg = svg.replace('url(#', f'url(#{identity}-').replace('href="#', f'href="#{identity}-')
    for size in ('width', 'height'):
        svg = re.sub(rf'(<svg[^>]*?) {size}="[^"]*"', r'\1', svg, count=1)
    head = f'<svg role="img" aria-labelledby="{identity}-alt"'
    title = f'<title id="{identity}-alt">{escape(panel.alt_text)}</title>'
    return Markup(re.sub(r'<svg([^>]*)>', lambda match: f'{head}{match[1]}>{title}', svg, count=1))


def without_folders(text: str, roots: Iterable[Path] = ()) -> str:
    """Shorten absolute paths, so that a page can be shown to others: relative to a root, or else the file name alone."""
    for root in roots:
        text = text.replace(f'{root}/', '')
    return re.sub(r'(?<![\w.:/])~?/(?:[^\s/,\'"=]+/)+([^\s/,\'"=]*)', r'\1', text)


def listed(names: Sequence[str], noun: str) -> str:
    """Up to three names, or how many there are: 'a and b', '8 models'."""
    if len(names) > 3:
        return f'{len(names)} {noun}'
    return ' and '.join(filter(None, [', '.join(names[:-1]), names[-1]]))


def brief(value: float) -> str:
    """A number with three digits, or all digits before the point."""
    return (f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}').replace('-', '−')
