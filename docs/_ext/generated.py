"""Write generated pages only where they changed, so that Sphinx reads only those again."""

from __future__ import annotations

from pathlib import Path


def write_pages(folder: Path, pages: dict[str, str]) -> None:
    """Make a folder hold exactly these Markdown pages (name without `.md` → text)."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob('*.md'):
        if path.stem not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / f'{name}.md'
        if not path.is_file() or path.read_text(encoding='utf-8') != text:
            path.write_text(text, encoding='utf-8')


def table(head: list[str], rows: list[list[str]]) -> str:
    """Format a Markdown table."""
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join('| ' + ' | '.join(cell.replace('|', '\\|') for cell in line) + ' |' for line in lines)
