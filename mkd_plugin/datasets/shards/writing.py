"""Packs folders of images into tar shards, and verifies them. A stopped run continues and gives the same bytes."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.fileio import get
from PIL import Image

from mkd_plugin.datasets.folder import EXTENSIONS
from mkd_plugin.datasets.loading import UnreadableImageError, decode
from mkd_plugin.datasets.shards.dataset import CLASSES
from mkd_plugin.datasets.shards.members import key_of, member_uri, scan, write_index
from mkd_plugin.utils.files import TEMPORARY, atomic_write, remove_path, sha256_of, write_whole

MANIFEST, SOURCES = 'manifest.json', 'sources.jsonl'
UNFINISHED = re.compile(rf'\.(shard-\d+\.tar(\.index\.json)?|manifest\.json|sources\.jsonl|{CLASSES})\.\d+\{TEMPORARY}')
CHUNK = 256  # images held in memory at a time


@dataclass(frozen=True)
class Options:
    """Options that decide the bytes of the shards. Raises ValueError for a number that is out of its range."""

    size: int = 0  #: Shrink the shorter side to this many pixels; 0 keeps every file as it is
    quality: int = 90  #: JPEG quality of shrunk images
    shard_size: int = 10_000  #: Images per shard
    labels: bool = False  #: Whether the first folder level is the class
    raw: bool = False  #: Store the pixels, as PPM, which are read without decoding

    def __post_init__(self) -> None:
        if self.size < 0 or not 1 <= self.quality <= 100 or self.shard_size < 1:
            raise ValueError(f'{self}: size must be 0 (as they are) or more, quality 1 … 100, shard_size 1 or more.')


@dataclass(frozen=True)
class Source:
    """An image file as found: path below the folder, bytes, modification time."""

    path: str
    size: int
    mtime_ns: int

    @property
    def label(self) -> str:
        """The first folder level."""
        return self.path.split('/', 1)[0]


@dataclass(frozen=True)
class Encoded:
    """A member made from a source, or the reason why the source is skipped."""

    ending: str = ''
    content: bytes = b''
    skipped: str = ''


def write_shards(
    folder: Path,
    target: Path,
    *,
    options: Options,
    workers: int = 1,
    begin: Callable[[int, int], Any] = lambda done, total: None,
    step: Callable[[int], Any] = lambda images: None,
) -> dict[str, Any]:
    """Write the shards of the images in ``folder`` that do not exist yet; they do not depend on the number of workers.

    ``begin`` is called once with the number of images already done and the total, ``step`` with the number of further
    images. Returns the manifest: options, number of images, classes, and ``sha256``, ``bytes``, ``images``, ``skipped`` of
    each shard. Raises ValueError if images or options differ from those with which ``target`` was begun.
    """
    sources = find_sources(folder)
    classes = classes_of(sources) if options.labels else []
    target.mkdir(parents=True, exist_ok=True)
    manifest = open_manifest(target, sources, options, classes)
    shards = {
        f'shard-{start // options.shard_size:06d}.tar': sources[start : start + options.shard_size]
        for start in range(0, len(sources), options.shard_size)
    }
    sizes = {name: entry['bytes'] for name, entry in manifest['shards'].items() if (target / name).is_file()}
    finished = [name for name in shards if name in sizes and (target / name).stat().st_size == sizes[name]]
    begin(sum(len(shards[name]) for name in finished), len(sources))
    work = partial(encode, folder=folder, options=options)
    with ExitStack() as stack:
        run: Callable[..., Iterable[Encoded]] = map
        if workers > 1:
            pool = ProcessPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
            run = stack.enter_context(pool).map
        for number, (name, shard) in enumerate(shards.items()):
            if name not in finished:
                encoded = in_chunks(run, work, shard, step)
                first = number * options.shard_size
                manifest['shards'][name] = write_shard(target / name, shard, encoded, first, classes)
                write_whole(target / MANIFEST, json.dumps(manifest, indent=1) + '\n')
    return manifest


def find_sources(folder: Path) -> list[Source]:
    """Every image below a folder, sorted by path. Raises ValueError if the folder does not exist, or has no images."""
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
    """The folders of the first level, sorted. Raises ValueError if an image is in none of them."""
    without = [source.path for source in sources if '/' not in source.path]
    if without:
        raise ValueError(f'--labels: {len(without)} images are in no folder of a class, the first is {without[0]}.')
    return sorted({source.label for source in sources})


def open_manifest(target: Path, sources: list[Source], options: Options, classes: list[str]) -> dict[str, Any]:
    """Read and check the manifest of an earlier run, or write a new one after the list of sources."""
    for path in target.iterdir():
        if UNFINISHED.fullmatch(path.name):  # left by a killed run
            remove_path(path)
    listed = [json.dumps([source.path, source.size, source.mtime_ns]) for source in sources]
    manifest: dict[str, Any] = dict(options=asdict(options), images=len(sources), classes=classes, shards={})
    if not (target / MANIFEST).is_file():
        foreign = sorted(path.name for path in target.glob('*.tar'))
        if foreign:
            raise ValueError(f'{target} has tar files of another origin, such as {foreign[0]}. Give another folder.')
        write_whole(target / SOURCES, '\n'.join(listed) + '\n')
        if classes:
            write_whole(target / CLASSES, '\n'.join(classes) + '\n')
        write_whole(target / MANIFEST, json.dumps(manifest, indent=1) + '\n')
        return manifest
    stored = read_manifest(target)
    stored['options'] = {**asdict(Options()), **stored['options']}  # older ones have no raw
    changed = sorted(set((target / SOURCES).read_text().splitlines()) ^ set(listed))
    difference = f'{stored["options"]} → {options}' if stored['options'] != manifest['options'] else ''
    if changed:
        difference = f'{len(changed)} entries differ, the first is {changed[0]}'
    if difference:
        raise ValueError(
            f'{target} was begun with other images or options: {difference}. Restore them, or give another folder.'
        )
    return stored


def read_manifest(target: Path) -> dict[str, Any]:
    """Read the manifest of shards. Raises ValueError if it is damaged."""
    try:
        manifest: dict[str, Any] = json.loads((target / MANIFEST).read_bytes())
        if manifest.keys() >= {'options', 'images', 'classes', 'shards'}:
            return manifest
    except (ValueError, AttributeError, RecursionError):
        pass
    raise ValueError(f'{target / MANIFEST} is damaged. Restore it, or delete {target} and make the shards anew.')


def in_chunks(
    run: Callable[..., Iterable[Encoded]],
    work: Callable[[Source], Encoded],
    shard: Sequence[Source],
    step: Callable[[int], Any],
) -> Iterator[Encoded]:
    """Encode the images of a shard in order, a limited number in memory at a time."""
    for start in range(0, len(shard), CHUNK):
        part = list(run(work, shard[start : start + CHUNK]))
        yield from part
        step(len(part))


def encode(source: Source, *, folder: Path, options: Options) -> Encoded:
    """Read an image, and shrink it if it is larger than ``options.size``. Raises ValueError if it has changed since it was
    found.
    """
    path = folder / source.path
    status = path.stat()
    if (status.st_size, status.st_mtime_ns) != (source.size, source.mtime_ns):
        raise ValueError(f'{path} was changed while the shards were made. Start again when the images are complete.')
    content = path.read_bytes()
    try:
        pixels = decode(content)
    except UnreadableImageError as error:
        return Encoded(skipped=str(error))
    height, width = pixels.shape[:2]
    larger = 0 < options.size < min(height, width)
    if not larger and not options.raw:
        return Encoded(path.suffix.lower(), content)
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    if larger:
        factor = options.size / min(height, width)
        image = image.resize((round(width * factor), round(height * factor)), Image.Resampling.BICUBIC)
    image.save(buffer, 'PPM' if options.raw else 'JPEG', quality=options.quality)
    return Encoded('.ppm' if options.raw else '.jpg', buffer.getvalue())


def write_shard(
    tar: Path, sources: Sequence[Source], encoded: Iterable[Encoded], first: int, classes: list[str]
) -> dict[str, Any]:
    """Write a shard atomically, then its index; return its entry of the manifest."""
    skipped: list[tuple[str, str]] = []
    numbers = {name: str(number).encode() for number, name in enumerate(classes)}
    with atomic_write(tar, 'wb') as file, tarfile.open(fileobj=file, mode='w|', format=tarfile.USTAR_FORMAT) as archive:
        for number, (source, image) in enumerate(zip(sources, encoded, strict=True), first):
            if image.skipped:
                skipped.append((source.path, image.skipped))
                continue
            add_member(archive, f'{number:09d}{image.ending}', image.content)
            if classes:
                add_member(archive, f'{number:09d}.cls', numbers[source.label])
    write_index(tar, scan(tar))
    images = len(sources) - len(skipped)
    return dict(sha256=sha256_of(tar), bytes=tar.stat().st_size, images=images, skipped=skipped)


def add_member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a member without owner and time, so that every run writes the same bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def verify_shards(target: Path, *, step: Callable[[int], Any] = lambda images: None) -> list[str]:
    """Read every shard again, and return the problems: its hash, the number of its images, each image to its end, each label.

    ``step`` is called with the number of further images read. Raises ValueError if the folder has no manifest.
    """
    if not (target / MANIFEST).is_file():
        raise ValueError(f'{target} has no {MANIFEST}: only shards that make_shards.py made can be verified.')
    manifest = read_manifest(target)
    problems = []
    for name, entry in manifest['shards'].items():
        try:
            problems += [f'{name}: {what}' for what in verify_shard(target / name, entry, manifest['classes'], step)]
        except (OSError, ValueError) as error:
            problems.append(f'{name}: {error}')
    expected = sum(entry['images'] + len(entry['skipped']) for entry in manifest['shards'].values())
    if expected != manifest['images']:
        problems.append(f'{expected} of {manifest["images"]} images are in shards: run make_shards.py again to finish.')
    return problems


def verify_shard(tar: Path, entry: dict[str, Any], classes: list[str], step: Callable[[int], Any]) -> list[str]:
    """The problems of one shard."""
    problems = []
    if sha256_of(tar) != entry['sha256']:
        problems.append('its content is not what was written (SHA-256)')
    index = scan(tar)
    images = [member for member in index.members if not member[0].endswith('.cls')]
    if len(images) != entry['images']:
        problems.append(f'{len(images)} images instead of {entry["images"]}')
    for name, offset, size in images:
        try:
            decode(get(member_uri(tar, name, offset, size)))
        except UnreadableImageError as error:
            problems.append(f'{name}: {error}')
        if classes and not 0 <= index.labels.get(key_of(name), -1) < len(classes):
            problems.append(f'{name}: no label, or none of the {len(classes)} classes')
        step(1)
    return problems
