"""Point the links of Markdown pages to files of the repository at the page of the site that shows them.

A page of docs/ is read on the site and in the repository. `../configs/dbot/README.md#ablations` is right in the repository; on
the site the same text is at `methods/dbot`. Links to other files of the repository become downloads, which Sphinx copies.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r'(?<!!)(\[[^\]\[]*\]\()((?:\.\./)*[\w./-]+)(#[\w-]+)?\)')
# Page of the site that shows a file or folder of the repository.
PAGES = {
    'README.md': 'index.md',
    'CONTRIBUTING.md': 'contributing.md',
    'CHANGELOG.md': 'changelog.md',
    'configs/downstream': 'downstream.md',
    'configs/unified_view': 'unified_view.md',
}


def site_target(target: str) -> str | None:
    """The page below docs/ that shows a path of the repository, or None if none does."""
    method = re.fullmatch(r'configs/(\w+)(?:/README\.md|/)?', target)
    if method and (ROOT / 'configs' / method[1] / 'README.md').is_file():
        return f'methods/{method[1]}.md'
    if target.startswith('docs/'):
        return target.removeprefix('docs/')
    return PAGES.get(target.rstrip('/'))


def rewrite(text: str, shown_at: str, lies_at: str) -> str:
    """Rewrite the relative links of a page.

    Args:
        text: Markdown.
        shown_at: The page's path below docs/, which Sphinx resolves its links against.
        lies_at: Path in the repository of the file that the text comes from, which the links are written against.
    """

    def replace(match: re.Match[str]) -> str:
        opening, link, anchor = match[1], match[2], match[3] or ''
        target = posixpath.normpath(posixpath.join(posixpath.dirname(lies_at), link))
        page = site_target(target)
        if page is not None:
            return f'{opening}{posixpath.relpath(page, posixpath.dirname(shown_at) or ".")}{anchor})'
        if (ROOT / target).is_dir():
            return f'{opening.removesuffix("](").removeprefix("[")}'  # a folder has no page: keep the words
        if (ROOT / target).is_file():
            # of absolute paths: relpath looks up others from the working directory, and '../mkd_plugin' is that in a clone
            return f'{opening}{posixpath.relpath("/" + target, posixpath.dirname("/docs/" + shown_at))})'
        return match[0]

    return LINK.sub(replace, text)


def on_source_read(app: Any, docname: str, source: list[str]) -> None:
    """Rewrite a page of docs/ as it is read; generated pages are written with their final links."""
    if not docname.startswith(('methods/', 'reference/generated/')):
        source[0] = rewrite(source[0], f'{docname}.md', f'docs/{docname}.md')


def on_include_read(app: Any, relative_path: Path, parent_docname: str, content: list[str]) -> None:
    """Rewrite an included file, such as CONTRIBUTING.md."""
    lies_at = posixpath.normpath(posixpath.join('docs', relative_path.as_posix()))
    content[0] = rewrite(content[0], f'{parent_docname}.md', lies_at)


def setup(app: Any) -> dict[str, Any]:
    """Register the two hooks."""
    app.connect('source-read', on_source_read)
    app.connect('include-read', on_include_read)
    return dict(parallel_read_safe=True)
