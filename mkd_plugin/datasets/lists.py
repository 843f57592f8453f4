"""Reads lists: text files with one entry a line, from whatever editor or system they come."""

from __future__ import annotations

import io
import logging
from pathlib import Path

from mmengine.fileio import get
from mmengine.logging import print_log

LONGEST = 32_768  # characters of a line; paths have up to 4096 bytes
MOST_CLASSES = 1_000_000  # class ids beyond are taken for mistakes: memory for a score of each class is allocated


def read_list(path: str | Path) -> list[str]:
    """Read the lines of a list that are not blank, without their ends.

    A list is UTF-8, with or without a byte order mark. One that is not is read as Latin-1, with a warning. Raises
    ValueError if it does not exist, is no regular file, holds zero bytes as UTF-16 and binary files do, or a line that is
    longer than any path.
    """
    if '://' not in str(path) and not Path(path).is_file():
        what = 'is a folder, pipe or device, not a file' if Path(path).exists() else 'does not exist'
        raise ValueError(f'The list {path} {what}.')
    content = get(str(path))
    if b'\0' in content:
        raise ValueError(f'The list {path} is no text of one entry a line: it is binary, or UTF-16. Save it as UTF-8.')
    try:
        return lines_of(path, content, 'utf-8-sig')
    except UnicodeDecodeError as error:
        text = f'{path} is not UTF-8 (line {content.count(10, 0, error.start) + 1}): it is read as Latin-1.'
        print_log(f'{text} If names are not found, save it as UTF-8.', 'current', level=logging.WARNING)
        return lines_of(path, content, 'latin-1')


def lines_of(path: str | Path, content: bytes, encoding: str) -> list[str]:
    """Decode a list to its lines that are not blank."""
    with io.TextIOWrapper(io.BytesIO(content), encoding, newline='\n') as lines:
        found = [line.rstrip('\r\n') for line in lines if line.strip()]
    if any(len(line) > LONGEST for line in found):
        raise ValueError(f'A line of {path} is longer than any path: it is no list of one entry a line.')
    return found
