"""Features of a frozen teacher that are written once and read back."""

from __future__ import annotations

import hashlib
import logging
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.logging import print_log
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mkd_plugin.checkpoint.checksum import METADATA, THREADS, check_tensors, tensor_checksums
from mkd_plugin.models.protocols import StudentContext, Teacher
from mkd_plugin.registry import MODELS, build
from mkd_plugin.structures import RegionTokens, TapSpec, TokenFeatures, TokenMask, Tokens
from mkd_plugin.utils.draws import to_device
from mkd_plugin.utils.files import atomic_write

PREFIX = 'num_prefix'
REPORT_EVERY = 1000  # batches


@MODELS.register_module()
class CachedTeacher(Teacher):
    """Reads the features of a frozen teacher from a folder, and runs the teacher for images that are not there yet.

    An image is known by its pixels: a pipeline that crops at random finds none again. If an image of a batch is missing on any
    process, every process runs the teacher on its whole batch and writes the missing images. Entries belong to the teacher's
    config and weights, the taps, and the number format of the step. Damaged ones are written again.

    The host waits for the device in every step, to hash the images.

    Args:
        teacher: Config of the teacher.
        folder: Folder of the features, which runs and processes may share.
        max_gigabytes: Bound on the folder, in 10⁹ bytes, for this run's processes together. Once it is reached, or a file
            cannot be written, the teacher runs for all images that are not there.

    Raises:
        ValueError: The teacher changes or depends on the mask, ``max_gigabytes`` is not positive, or a tap has no tokens.
    """

    def __init__(self, *, student: StudentContext, teacher: dict[str, Any], folder: str, max_gigabytes: float) -> None:
        super().__init__(student=student)
        self.teacher: Teacher = build(teacher, student=student)
        if self.teacher.changes or self.teacher.stages is not None or not self.teacher.sees_all:
            raise ValueError(
                f'CachedTeacher(teacher={type(self.teacher).__name__}): its features of an image change during training, or '
                'depend on the mask. Use it without CachedTeacher.'
            )
        if max_gigabytes <= 0:
            raise ValueError(f'max_gigabytes={max_gigabytes}: it must be positive.')
        self.folder, self.bound = Path(folder).expanduser(), int(max_gigabytes * 1e9)
        config = {key: value for key, value in teacher.items() if key != 'checkpoint'}  # the weights say which file
        tensors = dict(chain(self.teacher.named_buffers(), self.teacher.named_parameters()))
        whole = {name: tensor.cpu() for name, tensor in tensors.items() if not tensor.is_meta}
        self.identity = repr((config, student.grid, tensor_checksums(whole, {})))
        self.left: int | None = None  # bytes that this process may still write; None before the first batch
        self.batches = self.images = self.found = 0

    def tap_spec(self, name: str) -> TapSpec:
        """Describe a tap of the teacher. Raises ValueError for relations."""
        spec = self.teacher.tap_spec(name)
        if spec.kind != 'tokens':
            raise ValueError(f"CachedTeacher keeps tokens, but '{name}' is {spec.kind}. Use the teacher without it.")
        return spec

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(
        self, images_BCHW: Tensor, mask: TokenMask | None, taps: Sequence[str], region: RegionTokens | None = None
    ) -> TokenFeatures:
        """Read the features of all tokens, or compute and write them."""
        if images_BCHW.is_meta:  # a trial step without values
            return self.teacher(images_BCHW, None, taps)
        folder = self._folder_of(images_BCHW, taps)
        with ThreadPoolExecutor(THREADS) as pool:
            paths = [folder / name[:2] / f'{name}.safetensors' for name in pool.map(digest_of, images_BCHW.cpu())]
            entries = list(pool.map(read_entry, paths))
            missing = {path: row for row, path in enumerate(paths) if entries[row] is None}
            self._report(len(paths), sum(entry is None for entry in entries))
            if on_any_process(bool(missing), images_BCHW.device):
                features: TokenFeatures = self.teacher(images_BCHW, None, taps)
                self._write(missing, {tap: features.tokens(tap).cpu() for tap in taps}, features.num_prefix, pool)
                return features
        known = [entry for entry in entries if entry is not None]
        stacked = {tap: torch.stack([values[tap] for values, _ in known]) for tap in taps}
        return TokenFeatures(
            {tap: Tokens(to_device(x_BND, images_BCHW.device)) for tap, x_BND in stacked.items()},
            num_prefix=known[0][1],
        )

    def _folder_of(self, images_BCHW: Tensor, taps: Sequence[str]) -> Path:
        """Folder of the entries of these taps in this step's number format."""
        kind = images_BCHW.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        form = images_BCHW.dtype, tuple(images_BCHW.shape[1:]), autocast, repr(self.teacher)
        return self.folder / hashlib.sha256(repr((self.identity, tuple(taps), form)).encode()).hexdigest()[:16]

    def _write(
        self, missing: Mapping[Path, int], features: Mapping[str, Tensor], num_prefix: int, pool: ThreadPoolExecutor
    ) -> None:
        """Write the entries of these rows, as far as the bound allows."""
        if self.left is None:
            used = sum(path.stat().st_size for path in self.folder.rglob('*.safetensors'))
            self.left = max(self.bound - used, 0) // get_world_size()
        if not missing or self.left == 0:
            return
        rows = [{tap: x_BND[row] for tap, x_BND in features.items()} for row in missing.values()]
        contents = list(pool.map(partial(pack, num_prefix=num_prefix), rows))
        sizes = list(accumulate(map(len, contents)))
        fitting = bisect_right(sizes, self.left)
        try:
            list(pool.map(write_entry, list(missing)[:fitting], contents))
            reason = '' if fitting == len(sizes) else f'max_gigabytes={self.bound / 1e9:g} is reached'
        except OSError as error:
            reason = str(error)
        self.left = 0 if reason else self.left - sizes[-1]
        if reason:
            print_log(f'CachedTeacher writes no more features to {self.folder}: {reason}.', 'current', logging.WARNING)

    def _report(self, images: int, missing: int) -> None:
        """Count, and log the share of images that were found."""
        self.batches, self.images, self.found = self.batches + 1, self.images + images, self.found + images - missing
        if self.batches % REPORT_EVERY == 0:
            share = self.found / self.images
            print_log(f'CachedTeacher read {share:.1%} of {self.images:,} images from {self.folder}.', 'current')


def digest_of(image: Tensor) -> str:
    """Hash the pixels of an image in main memory."""
    return hashlib.blake2b(image.contiguous().view(torch.uint8).numpy().data, digest_size=16).hexdigest()


def pack(tensors: Mapping[str, Tensor], num_prefix: int) -> bytes:
    """Return the content of an entry, a .safetensors file with checksums."""
    whole, texts = {name: tensor.contiguous() for name, tensor in tensors.items()}, {PREFIX: str(num_prefix)}
    return save(whole, {**texts, METADATA: tensor_checksums(whole, texts)})


def write_entry(path: Path, content: bytes) -> None:
    """Write an entry; another process may write the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, 'wb') as file:
        file.write(content)


def read_entry(path: Path) -> tuple[dict[str, Tensor], int] | None:
    """Read the taps of an image and their number of prefix tokens; None if there is no entry, or a damaged one."""
    try:
        with safe_open(path, 'pt') as file:
            metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        check_tensors(tensors, metadata)
        return tensors, int(metadata[PREFIX])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None


def on_any_process(value: bool, device: torch.device) -> bool:
    """Whether a value is true on any process. Every process must call it: a sharded teacher runs on all or on none."""
    if get_world_size() == 1:
        return value
    found = torch.tensor(int(value), device=device)
    all_reduce(found, 'max')
    return bool(found)
