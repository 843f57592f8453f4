"""Members of tar files as files of their own, for every loader of the hosts: ``tar://<file>@<offset>+<size>/<member>``."""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from pathlib import Path

from mmengine.fileio import BaseStorageBackend, register_backend

PREFIX = 'tar://'
ADDRESS = re.compile(PREFIX + r'(.+?\.tar)@(\d+)\+(\d+)/', re.IGNORECASE)
MOST_OPEN = 256  # files kept open; most systems allow a process 1024


def member_uri(tar: str | Path, name: str, offset: int, size: int) -> str:
    """The address of a member; its name is there for messages only."""
    return f'{PREFIX}{tar}@{offset}+{size}/{name.replace("://", ":/")}'  # mmengine splits at ://


def parse_uri(uri: str) -> tuple[str, int, int]:
    """(tar file, offset, size) of an address.

    Raises:
        ValueError: It is none.
    """
    found = ADDRESS.match(uri)
    if found is None:
        raise ValueError(f'{uri}: the address of a member is tar://FILE.tar@OFFSET+SIZE/NAME; ShardDataset makes them.')
    return found[1], int(found[2]), int(found[3])


class TarMemberBackend(BaseStorageBackend):
    """mmengine's way to read ``tar://…``.

    ``os.pread`` leaves no position behind, so that worker processes may use the descriptors that they inherit.
    """

    def __init__(self) -> None:
        self._open: OrderedDict[str, int] = OrderedDict()

    def get(self, filepath: str | Path) -> bytes:
        """The content of a member.

        Raises:
            OSError: The tar file is gone, or ends before the member does.
            ValueError: ``filepath`` is no address of a member.
        """
        tar, offset, size = parse_uri(str(filepath))
        descriptor = self._descriptor(tar)
        content = os.pread(descriptor, size, offset)
        while len(content) < size:  # a network file system may give less at a time
            more = os.pread(descriptor, size - len(content), offset + len(content))
            if not more:
                raise OSError(f'{tar} ends before byte {offset + size:,}: it was cut off after it was indexed')
            content += more
        return content

    def get_text(self, filepath: str | Path, encoding: str = 'utf-8') -> str:
        """The content of a member as text."""
        return self.get(filepath).decode(encoding)

    def _descriptor(self, tar: str) -> int:
        """Open a tar file, or take it from those that are; the one that was not used for longest is closed."""
        if tar in self._open:
            self._open.move_to_end(tar)
            return self._open[tar]
        descriptor = os.open(tar, os.O_RDONLY | getattr(os, 'O_CLOEXEC', 0))
        self._open[tar] = descriptor
        if len(self._open) > MOST_OPEN:
            os.close(self._open.popitem(last=False)[1])
        return descriptor


register_backend('mkd_tar', TarMemberBackend, prefixes='tar', force=True)
