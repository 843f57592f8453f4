"""From nested image folders to tar shards; a stopped run is taken up again, and gives the same bytes."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from PIL import Image

from mkd_plugin.datasets.folder import EXTENSIONS
from mkd_plugin.datasets.loading import UnreadableImageError, decode
from mkd_plugin.datasets.shards.dataset import CLASSES
from mkd_plugin.datasets.shards.index import scan, write_index
from mkd_plugin.engine.checkpoints import put_in_place

MANIFEST, SOURCES = 'manifest.json', 'sources.jsonl'
AT_ONCE = 256  # images that are in memory on their way to a shard


@dataclass(frozen=True)
class Options:
    """What decides the bytes of the shards.

    Attributes:
        size: Shrink the shorter side to this many pixels; 0 keeps every file as it is.
        quality: JPEG quality of what is shrunk.
        shard_size: Images in a shard.
        labels: Whether the first folder level is the class.

    Raises:
        ValueError: A number is out of its range.
    """

    size: int = 0
    quality: int = 90
    shard_size: int = 10_000
    labels: bool = False

    def __post_init__(self) -> None:
        if self.size < 0 or not 1 <= self.quality <= 100 or self.shard_size < 1:
            raise ValueError(f'{self}: size must be 0 (as they are) or more, quality 1 … 100, shard_size 1 or more.')


@dataclass(frozen=True)
class Source:
    """An image file as it was found: path below the folder, bytes, time of change."""

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Encoded:
    """What becomes of a source: its file name's ending and content, or why it is left out."""

    ending: str = ''
    content: bytes = b''
    skipped: str = ''


def find_sources(folder: Path) -> list[Source]:
    """Every image below a folder, sorted by path.

    Raises:
        ValueError: There is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise ValueError(f'{folder} is no folder. Give the folder of the images.')
    paths = sorted(path for path in folder.rglob('*') if path.suffix.lower() in EXTENSIONS and path.is_file())
    if not paths:
        raise ValueError(f'{folder} has no images ({", ".join(EXTENSIONS)}).')
    return [
        Source(path.relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns)
        for path, status in ((path, path.stat()) for path in paths)
    ]


def classes_of(sources: Iterable[Source]) -> list[str]:
    """The folders of the first level, sorted.

    Raises:
        ValueError: An image lies in none of them.
    """
    without = [source.path for source in sources if '/' not in source.path]
    if without:
        raise ValueError(f'--labels: {len(without)} images are in no folder of a class, the first is {without[0]}.')
    return sorted({source.path.split('/', 1)[0] for source in sources})


def encode(source: Source, *, folder: Path, options: Options) -> Encoded:
    """Read an image, and shrink it if it is to be.

    Raises:
        ValueError: The file is not the one that was found.
    """
    path = folder / source.path
    status = path.stat()
    if (status.st_size, status.st_mtime_ns) != (source.size, source.mtime_ns):
        raise ValueError(f'{path} was changed while the shards were made. Start again when the images are at rest.')
    content = path.read_bytes()
    try:
        pixels = decode(content)
    except UnreadableImageError as error:
        return Encoded(skipped=str(error))
    height, width = pixels.shape[:2]
    if not options.size or min(height, width) <= options.size:
        return Encoded(path.suffix.lower(), content)
    factor = options.size / min(height, width)
    sides = (round(width * factor), round(height * factor))
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(sides, Image.Resampling.BICUBIC).save(buffer, 'JPEG', quality=options.quality)
    return Encoded('.jpg', buffer.getvalue())


class HashedFile:
    """A file that knows the SHA-256 of what was written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, content: bytes) -> int:
        """Write and count in."""
        self.digest.update(content)
        return self.file.write(content)


def write_shards(
    folder: Path,
    target: Path,
    *,
    options: Options,
    workers: int = 1,
    begin: Callable[[int, int], Any] = lambda done, total: None,
    step: Callable[[int], Any] = lambda images: None,
) -> dict[str, Any]:
    """Write those shards that are not there yet.

    Args:
        folder: The images.
        target: The folder of the shards.
        options: See :class:`Options`.
        workers: Processes that read and shrink; the shards do not depend on it.
        begin: Told how many images are done already, and how many there are.
        step: Told from time to time how many more are done.

    Returns:
        The manifest: options, number of images, classes, and of each shard ``sha256``, ``bytes``, ``images``, ``skipped``.

    Raises:
        ValueError: The images or the options are not those that ``target`` was begun with.
        OSError: Something cannot be read or written.
    """
    sources = find_sources(folder)
    classes = classes_of(sources) if options.labels else []
    target.mkdir(parents=True, exist_ok=True)
    manifest = take_up(target, sources, options, classes)
    shards = [sources[start : start + options.shard_size] for start in range(0, len(sources), options.shard_size)]
    names = [f'shard-{number:06d}.tar' for number in range(len(shards))]
    finished = {name for name in names if is_finished(target / name, manifest)}
    begin(sum(len(shard) for name, shard in zip(names, shards, strict=True) if name in finished), len(sources))
    work = partial(encode, folder=folder, options=options)
    with ExitStack() as stack:
        run: Callable[..., Iterable[Encoded]] = map
        if workers > 1:
            run = stack.enter_context(
                ProcessPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
            ).map
        for number, (name, shard) in enumerate(zip(names, shards, strict=True)):
            if name in finished:
                continue
            encoded = in_slices(run, work, shard, step)
            manifest['shards'][name] = write_shard(target / name, shard, encoded, number * options.shard_size, classes)
            put_json(target / MANIFEST, manifest)
    return manifest


def in_slices(
    run: Callable[..., Iterable[Encoded]],
    work: Callable[[Source], Encoded],
    shard: Sequence[Source],
    step: Callable[[int], Any],
) -> Iterator[Encoded]:
    """The images of a shard in their order, a limited number in memory at a time."""
    for start in range(0, len(shard), AT_ONCE):
        part = list(run(work, shard[start : start + AT_ONCE]))
        yield from part
        step(len(part))


def take_up(target: Path, sources: list[Source], options: Options, classes: list[str]) -> dict[str, Any]:
    """The manifest of what is there, or a new one; the list of sources is written first."""
    listed = [json.dumps([source.path, source.size, source.mtime_ns]) for source in sources]
    manifest: dict[str, Any] = dict(options=asdict(options), images=len(sources), classes=classes, shards={})
    if not (target / MANIFEST).is_file():
        foreign = sorted(path.name for path in target.glob('*.tar'))
        if foreign:
            raise ValueError(f'{target} has tar files of another origin, such as {foreign[0]}. Give another folder.')
        put_text(target / SOURCES, '\n'.join(listed) + '\n')
        if classes:
            put_text(target / CLASSES, '\n'.join(classes) + '\n')
        put_json(target / MANIFEST, manifest)
        return manifest
    stored: dict[str, Any] = json.loads((target / MANIFEST).read_text())
    before = (target / SOURCES).read_text().splitlines()
    changed = sorted(set(before) ^ set(listed))
    if changed or stored['options'] != manifest['options']:
        what = (
            f'{len(changed)} entries differ, the first is {changed[0]}'
            if changed
            else f'{stored["options"]} → {options}'
        )
        raise ValueError(
            f'{target} was begun with other images or options: {what}. Restore them, or give another folder.'
        )
    return stored


def is_finished(tar: Path, manifest: dict[str, Any]) -> bool:
    """Whether a shard is there as the manifest has it; ``--verify`` reads it as well."""
    entry = manifest['shards'].get(tar.name)
    return entry is not None and tar.is_file() and tar.stat().st_size == entry['bytes']


def write_shard(
    tar: Path, sources: Sequence[Source], encoded: Iterable[Encoded], first: int, classes: list[str]
) -> dict[str, Any]:
    """Write a shard, the whole of it or nothing, and its index; returns its entry of the manifest."""
    half = tar.with_name(f'.{tar.name}.tmp')
    skipped: list[tuple[str, str]] = []
    with half.open('wb') as file:
        hashed = HashedFile(file)
        with tarfile.open(fileobj=hashed, mode='w|', format=tarfile.USTAR_FORMAT) as archive:  # type: ignore[call-overload]
            for number, (source, image) in enumerate(zip(sources, encoded, strict=True), first):
                if image.skipped:
                    skipped.append((source.path, image.skipped))
                    continue
                add(archive, f'{number:09d}{image.ending}', image.content)
                if classes:
                    add(archive, f'{number:09d}.cls', str(classes.index(source.path.split('/', 1)[0])).encode())
    entry = dict(sha256=hashed.digest.hexdigest(), bytes=half.stat().st_size, images=len(sources) - len(skipped))
    put_in_place(half, tar)
    write_index(tar, scan(tar))
    return {**entry, 'skipped': skipped}


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """A member without owner and time, which would make each run's bytes others."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def put_text(path: Path, text: str) -> None:
    """Write a file that is either whole or not there."""
    half = path.with_name(f'.{path.name}.tmp')
    half.write_text(text)
    put_in_place(half, path)


def put_json(path: Path, value: Any) -> None:
    """Likewise, as JSON."""
    put_text(path, json.dumps(value, indent=1) + '\n')
