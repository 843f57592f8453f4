"""The list of the images in all shards: one file for all processes of a node, read from the disk as it is needed."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import mmap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
from mmengine.logging import print_log
from numpy.typing import NDArray

from mkd_plugin.datasets.shards.members import BLOCK, File, ShardIndex, index_path, key_of, member_uri
from mkd_plugin.datasets.shards.storage import FOLDER, cache_folder, version_of
from mkd_plugin.utils.files import TEMPORARY, json_dict, lock_file, move_into_place, remove_path

#: An image: its place in the tar in blocks of 512 bytes, its bytes, its label or -1, and where its name ends among the names
#: of its tar
RECORD = np.dtype([('block', '<u4'), ('size', '<u4'), ('label', '<i4'), ('name_end', '<u4')])
HEADER, RECORDS, NAMES = 'header.json', 'images', 'names'  # files of a list
MOST = 2**32 - 1  # bytes of an image that a record can hold; no image may have as many


class ShardList(Sequence[dict[str, Any]]):
    """The samples of a data set of shards, in the order of the tar files and their members.

    ``records`` (of ``RECORD``) and ``names`` (UTF-8) are mapped into memory: processes share the pages that they have read.
    ``first_image`` and ``first_name`` of the header say where those of each tar begin, and where the last ones end; its
    ``digest`` does not depend on the folder. ``chosen`` are the images that are samples.
    """

    def __init__(
        self,
        tars: Sequence[File],
        header: dict[str, Any],
        records: NDArray[Any],
        names: NDArray[np.uint8],
        *,
        with_label: bool,
        chosen: range | None = None,
    ) -> None:
        self.tars, self.header, self.records, self.names, self.with_label = tars, header, records, names, with_label
        self.first_image, self.first_name = np.asarray(header['first_image']), header['first_name']
        self.chosen = range(len(records)) if chosen is None else chosen

    def __reduce__(self) -> Any:
        """Map the files again in another process."""
        if not isinstance(self.records, np.memmap):
            return super().__reduce__()
        return _mapped, (Path(str(self.records.filename)).parent, self.tars, self.header, self.with_label, self.chosen)

    def __len__(self) -> int:
        return len(self.chosen)

    @overload
    def __getitem__(self, at: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, at: slice) -> ShardList: ...

    def __getitem__(self, at: int | slice) -> dict[str, Any] | ShardList:
        """The address and the label of a sample; a slice is a list that shares the file."""
        if isinstance(at, slice):
            part, kind = self.chosen[at], self.with_label
            return ShardList(self.tars, self.header, self.records, self.names, with_label=kind, chosen=part)
        image = self.chosen[at]
        shard = int(np.searchsorted(self.first_image, image, 'right')) - 1
        block, size, label, end = self.records[image].tolist()
        begin = 0 if image == self.first_image[shard] else int(self.records['name_end'][image - 1])
        name = bytes(self.names[self.first_name[shard] + begin : self.first_name[shard] + end]).decode()
        sample = {'img_path': member_uri(self.tars[shard], name, block * BLOCK, size)}
        return {**sample, 'gt_label': label} if self.with_label else sample

    @property
    def digest(self) -> str:
        """Hash of the samples: places in shards, names, labels and order."""
        return f'{self.header["digest"]} {self.chosen}'

    @property
    def starts(self) -> NDArray[np.int64]:
        """Where each shard's samples begin, and where the last ones end; those of a part if it has no gaps."""
        if self.chosen.step != 1:
            return np.array([0, len(self)])
        return np.unique(np.clip(self.first_image - self.chosen.start, 0, len(self)))


def open_list(
    folder: File,
    tars: Sequence[File],
    indexed: Callable[[Sequence[File]], Iterable[ShardIndex]],
    is_sample: Callable[[str], bool],
    *,
    options: Sequence[Any],
    classes: int,
) -> ShardList:
    """Open the list of a folder's samples, or write it: once a node, into its cache folder, while other processes wait.

    It stays in memory if it cannot be kept. Its header has ``unlabelled`` and ``same_key``: the numbers of samples without a
    label and with the key of another one, and the first of them.

    Args:
        folder: The folder of the tar files.
        tars: The tar files.
        indexed: Gives the content of each of them.
        is_sample: Whether a member of this name is a sample.
        options: What the result of ``is_sample`` depends on.
        classes: Labels have to be below this number; 0 reads none.
    """
    place = hashlib.sha256(repr((str(folder), options, classes)).encode()).hexdigest()[:16]

    def write(records: BinaryIO, names: BinaryIO) -> dict[str, Any]:
        return _write(zip(tars, indexed(tars), strict=True), is_sample, classes, records, names)

    def key() -> str:
        indexes = [path for path in map(index_path, tars) if isinstance(path, Path) and path.is_file()]
        files = [(str(file), file.stat().st_size, version_of(file)) for file in (*tars, *indexes)]
        return hashlib.sha256(repr(files).encode()).hexdigest()

    for tar in tars:
        tar.stat()  # an error here is none of the cache
    try:
        target = cache_folder() / f'{place}.list'
        with lock_file(target.with_suffix('.lock'), wait=True):
            header = json_dict((target / HEADER).read_bytes()) if (target / HEADER).is_file() else {}
            if header.get('key') != key():
                half = target.with_suffix(TEMPORARY)
                remove_path(half)
                half.mkdir()
                with (half / RECORDS).open('wb') as file, (half / NAMES).open('wb') as name_file:
                    header = {**write(file, name_file), 'key': key()}  # the indexes may have been written meanwhile
                (half / HEADER).write_text(json.dumps(header))
                move_into_place(half, target)
        return _mapped(target, tars, header, bool(classes))
    except OSError as error:
        text = f'The list of the images cannot be kept ({error}): every process holds it in memory. Set {FOLDER}'
        print_log(f'{text} to a folder with space.', 'current', level=logging.WARNING)
    memory, name_memory = io.BytesIO(), io.BytesIO()
    header = write(memory, name_memory)
    images, letters = np.frombuffer(memory.getvalue(), RECORD), np.frombuffer(name_memory.getvalue(), np.uint8)
    return ShardList(tars, header, images, letters, with_label=bool(classes))


def _mapped(
    folder: Path, tars: Sequence[File], header: dict[str, Any], with_label: bool, chosen: range | None = None
) -> ShardList:
    """Map the files of a list."""
    records: Any = np.zeros(0, RECORD)
    names: Any = np.zeros(0, np.uint8)
    if header['first_image'][-1]:  # numpy maps no empty file
        records, names = np.memmap(folder / RECORDS, RECORD, 'r'), np.memmap(folder / NAMES, np.uint8, 'r')
        for mapped in (records, names):
            mapped.base.madvise(mmap.MADV_RANDOM)  # a look-up takes 60 times as long if the system reads ahead
    return ShardList(tars, header, records, names, with_label=with_label, chosen=chosen)


def _write(
    shards: Iterable[tuple[File, ShardIndex]],
    is_sample: Callable[[str], bool],
    classes: int,
    records: BinaryIO,
    names: BinaryIO,
) -> dict[str, Any]:
    """Write the records and the names of all samples, and return the header. Holds one tar at a time in memory."""
    first_image, first_name, digest = [0], [0], hashlib.sha256()
    unlabelled: list[str] = []
    same_key: list[str] = []
    for tar, index in shards:
        members = [member for member in index.members if is_sample(member[0])]
        texts = [name.encode(errors='replace') for name, _, _ in members]
        table = np.zeros(len(members), RECORD)
        table['block'] = [offset // BLOCK for _, offset, _ in members]
        table['size'] = [min(size, MOST) for _, _, size in members]
        table['name_end'] = np.cumsum([len(text) for text in texts])
        labels = [index.labels.get(key_of(name), -1) if classes else -1 for name, _, _ in members]
        table['label'] = [label if 0 <= label < classes else -1 for label in labels]
        keys: dict[str, str] = {}
        for (name, _, _), label in zip(members, table['label'].tolist(), strict=True):
            if classes and label < 0:
                unlabelled.append(f'{tar.name}: {name}')
            if keys.setdefault(key_of(name), name) != name:
                same_key.append(f'{keys[key_of(name)]} and {name} in {tar.name}')
        content, letters = table.tobytes(), b''.join(texts)
        records.write(content)
        names.write(letters)
        digest.update(repr((tar.name, len(members), len(letters))).encode() + content + letters)
        first_image.append(first_image[-1] + len(members))
        first_name.append(first_name[-1] + len(letters))
    found = dict(unlabelled=(len(unlabelled), unlabelled[:1]), same_key=(len(same_key), same_key[:1]))
    return dict(first_image=first_image, first_name=first_name, digest=digest.hexdigest(), **found)
