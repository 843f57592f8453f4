"""Compare JPEG decoders within the whole loading path: the folder config's data set, order, collation and preprocessor.

    python benchmarks/decode_time.py [--images 256] [--pairs 7] [--only NAME …]

The photographs and the timing are those of data_time.py: processor times of one core, in turn, ratios pair by pair. Besides
torchvision's decoder, those of packages that are installed are measured: `pip install simplejpeg`, `'PyTurboJPEG<2'` (with
TurboJPEG's library, whose path TURBOJPEG may hold), `nvidia-nvimgcodec-cu13`, which decodes regions on a CPU, too. The last
column is the largest difference from cv2 over the crops, in levels of 255.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from data_time import our_pipeline, run_rounds
from mmcv.image import imfrombytes
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmpretrain.datasets import RandomResizedCrop
from photographs import write_photographs
from PIL import Image
from rich.console import Console
from rich.table import Table
from timing import pairwise
from torchvision.io import ImageReadMode, decode_jpeg

from mkd_plugin.datasets import crops, loading

Decoder = Callable[[bytes, tuple[int, int, int, int] | None], Any]  # file, box as top, left, height, width → BGR


def whole(decode: Callable[[bytes], Any]) -> Decoder:
    """A decoder of whole images, from which the box is cut."""

    def cut(content: bytes, box: tuple[int, int, int, int] | None) -> Any:
        top, left, height, width = box or (0, 0, None, None)
        image = decode(content)
        return image if height is None else image[top : top + height, left : left + width]

    return cut


def with_torchvision(content: bytes) -> Any:
    """torchvision's decoder; flips to BGR."""
    image = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=ImageReadMode.RGB)
    return np.ascontiguousarray(image.flip(0).permute(1, 2, 0).numpy())


def with_draft(content: bytes) -> Any:
    """Pillow, allowed to decode a half of the size if that is enough for 224 pixels."""
    image = Image.open(io.BytesIO(content))
    image.draft('RGB', (224, 224))
    return np.asarray(image)[..., ::-1]


def decoders() -> dict[str, Decoder]:
    """The decoders that are installed."""
    found: dict[str, Decoder] = {
        'cv2 (ours)': whole(lambda content: imfrombytes(content, backend='cv2')),
        'torchvision': whole(with_torchvision),
        'Pillow, draft mode': whole(with_draft),
    }
    if importlib.util.find_spec('simplejpeg'):
        from simplejpeg import decode_jpeg as simple

        found['simplejpeg'] = whole(lambda content: simple(content, 'BGR', fastdct=False, fastupsample=False))
        found['simplejpeg, fast'] = whole(lambda content: simple(content, 'BGR', fastdct=True, fastupsample=True))
    if importlib.util.find_spec('turbojpeg') and os.environ.get('TURBOJPEG'):
        from turbojpeg import TurboJPEG

        turbo = TurboJPEG(os.environ['TURBOJPEG'])

        def cropped(content: bytes, box: tuple[int, int, int, int] | None) -> Any:
            top, left, height, width = box or (0, 0, *imfrombytes(content).shape[:2])
            y, x = top % 16, left % 16  # a lossless crop begins where a block of 16 pixels does
            part = turbo.crop(content, left - x, top - y, width + x, height + y)
            return turbo.decode(part)[y : y + height, x : x + width]

        found['PyTurboJPEG'] = whole(turbo.decode)
        found['PyTurboJPEG, crop'] = cropped
    if importlib.util.find_spec('nvidia') and importlib.util.find_spec('nvidia.nvimgcodec'):
        from nvidia import nvimgcodec

        backends = [nvimgcodec.Backend(nvimgcodec.CPU_ONLY)]
        codec = nvimgcodec.Decoder(
            device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY, backends=backends, max_num_cpu_threads=1
        )

        def region(content: bytes, box: tuple[int, int, int, int] | None) -> Any:
            stream = nvimgcodec.CodeStream(content)
            if box is not None:
                top, left, height, width = box
                where = nvimgcodec.Region(top, left, top + height, left + width)
                stream = stream.get_sub_code_stream(0, where)
            return np.ascontiguousarray(np.asarray(codec.decode(stream).cpu())[..., ::-1])

        found['nvImageCodec'] = whole(lambda content: region(content, None))
        found['nvImageCodec, region'] = region
    return found


class Patched:
    """A run of the pipeline in which a decoder replaces cv2's; the box is drawn before, from the size in the file."""

    def __init__(self, run: Callable[[], object], decoder: Decoder) -> None:
        self.run, self.decoder = run, decoder

    def __call__(self) -> None:
        read, crop = loading.LoadAnyImage.transform, RandomResizedCrop(scale=224, crop_ratio_range=(0.2, 1.0))

        def load(step: Any, results: dict[str, Any]) -> dict[str, Any]:
            content = Path(results['img_path']).read_bytes()
            assert loading.is_ordinary_jpeg(content) and loading.count_scans(content) <= loading.MOST_SCANS
            with Image.open(io.BytesIO(content)) as image:
                width, height = image.size
            box = crop.rand_crop_params(np.broadcast_to(np.uint8(0), (height, width, 3)))
            results['img'] = self.decoder(content, box)
            return results

        loading.LoadAnyImage.transform = load  # type: ignore[method-assign]
        crops.CropForDevice.rand_crop_params = lambda step, image: (0, 0, *image.shape[:2])
        try:
            self.run()
        finally:
            loading.LoadAnyImage.transform = read  # type: ignore[method-assign]
            del crops.CropForDevice.rand_crop_params  # the parent's is there again


def difference(decoder: Decoder, reference: Decoder, paths: Sequence[Path]) -> int:
    """The largest difference in levels, over boxes of these files."""
    found = 0
    for number, path in enumerate(paths):
        box, content = (10 + number, 31 + number, 200, 251), path.read_bytes()
        one, two = (np.asarray(which(content, box)).astype(int) for which in (decoder, reference))
        found = max(found, int(abs(one - two).max()) if one.shape == two.shape else 255)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, default=256, help='number of images (default: 256)')
    parser.add_argument('--pairs', type=int, default=7, help='measured epochs of each decoder (default: 7)')
    parser.add_argument('--only', nargs='+', metavar='NAME', help='these decoders and cv2')
    args = parser.parse_args(arguments)
    MMLogger.get_current_instance().setLevel('WARNING')
    init_default_scope('mmpretrain')
    torch.set_num_threads(1)
    chosen = {
        name: decoder for name, decoder in decoders().items() if not args.only or 'cv2' in name or name in args.only
    }
    with TemporaryDirectory() as root:
        write_photographs(Path(root), args.images)
        run, paths = our_pipeline('folder', Path(root)), sorted(Path(root).rglob('*.jpg'))[:16]
        runs: dict[str, Callable[[], object]] = {name: Patched(run, decoder) for name, decoder in chosen.items()}
        table = Table(title=f'{args.images} images, {args.pairs} pairs; load {os.getloadavg()[0]:.1f}')
        for title in ('', 'images/s and core', 'ratio to cv2 (quartiles)', 'levels'):
            table.add_column(title, no_wrap=True)
        found = run_rounds(runs, args.pairs)
        reference = [processor for processor, _ in found['cv2 (ours)']]
        for name, times in found.items():
            own = [processor for processor, _ in times]
            ratio = pairwise(reference, own)
            shown = f'{ratio["median"]:.2f} × ({ratio["low"]:.2f} – {ratio["high"]:.2f})'
            levels = difference(chosen[name], chosen['cv2 (ours)'], paths)
            table.add_row(name, f'{args.images / np.median(own):.0f}', shown, str(levels))
    Console(width=100).print(table)


if __name__ == '__main__':
    main()
