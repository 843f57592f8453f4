"""The report as one HTML page that needs nothing else: no network, no library, no file beside it."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from mkd_plugin.analysis.report.images import ImageSet
from mkd_plugin.analysis.report.result import Report
from mkd_plugin.analysis.report.sections import Section, sections_of
from mkd_plugin.reporting.html import anchor, document, panels, table
from mkd_plugin.utils.files import write_whole


def write_page(path: Path, report: Report, images: ImageSet) -> None:
    """Write the page.

    Args:
        path: Where to.
        report: What was measured.
        images: Those that attention is drawn on.
    """
    sections = list(sections_of(report, images))
    names = ', '.join(report.models)
    body = [
        '<h2>Models and settings</h2>',
        table(model_rows(report)),
        table(setting_rows(report)),
        '<p class="note">Click a figure, or press Enter on it, to enlarge it. Every number is in '
        '<code>report.json</code> beside this page.</p>',
        *(section_html(number, of) for number, of in enumerate(sections)),
    ]
    titles = [of.caption.title for of in sections]
    write_whole(path, document(f'Analysis of {names}', f'What distillation did: {names}', titles, body))


def section_html(number: int, section: Section) -> str:
    """Heading, figures, sentences."""
    caption = section.caption
    parts = [f'<h2 id="{anchor(caption.title)}">{escape(caption.title)}</h2>']
    if section.panels:
        parts.append(panels(f'f{number}', section.panels))
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


def model_rows(report: Report) -> list[list[str]]:
    """The table of models."""
    rows = [['model', 'file', 'format', 'parameters', 'blocks × width, heads', 'image, patch', 'pixels', 'remarks']]
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
                pixels(model),
                '; '.join(model['notes']) or '–',
            ]
        )
    return rows


def pixels(model: Mapping[str, Any]) -> str:
    """Mean and standard deviation that the images are brought to."""
    mean, std = (' '.join(f'{value:.4g}' for value in model[name]) for name in ('pixel_mean', 'pixel_std'))
    return f'mean {mean}, std {std}'


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
