"""Export a network with its pixel normalisation as a graph, for ONNX Runtime, ``torch.export`` or TorchScript."""

from __future__ import annotations

import copy
import json
import os
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mkd_plugin.interop.open_model import OpenedModel
from mkd_plugin.utils.files import move_into_place, remove_path

GRAPHS = ('onnx', 'torch', 'torchscript')
SUFFIXES = {'onnx': '.onnx', 'torch': '.pt2', 'torchscript': '.pt'}
OPSET = 20  # of ONNX: the first with GELU as one operator
BATCHES = (1, 2, 5)  # at which a graph is compared with the network
TOLERANCE, HALF_TOLERANCE = 1e-4, 2e-2  # largest difference, relative to the largest magnitude
INPUT, OUTPUT = 'images', 'features'


class Deployed(nn.Module):
    """RGB in [0, 1] → features, in one module.

    Args:
        model: The network and its pixel statistics.
        tap: Where to read.
        pool: 'cls', 'mean' of the patch tokens, or 'none' for all tokens.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: OpenedModel, *, tap: str, pool: str) -> None:
        super().__init__()
        if pool not in ('cls', 'mean', 'none'):
            raise ValueError(f"pool='{pool}': use 'cls', 'mean' or 'none'.")
        self.network, self.tap, self.pool = model.network, tap, pool
        mean, std = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) / 255 for values in model.pixels)
        self.register_buffer('mean', mean)
        self.register_buffer('std', std)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return (B, D), or (B, N, D) with ``pool='none'``."""
        tokens_BND = self.network((images_BCHW - self.mean) / self.std, taps=(self.tap,)).tokens(self.tap)
        if self.pool == 'none':
            return tokens_BND
        return tokens_BND[:, 0] if self.pool == 'cls' else tokens_BND[:, self.network.num_prefix :].mean(dim=1)


def export_graph(
    model: OpenedModel, path: str | Path, target: str, *, tap: str = 'block:-1', pool: str = 'mean', half: bool = False
) -> tuple[float, float]:
    """Write a network as a graph with a dynamic batch, and compare its output with the network's.

    The graph takes RGB in [0, 1], (B, 3, H, W) float32, of the network's own size, and returns float32; normalisation is in
    it. The written file is opened again in its own runtime and compared at batches of 1, 2 and 5 random images.

    Args:
        model: The network, on the CPU.
        path: File to write; it appears only if the comparison holds.
        target: 'onnx', 'torch' (``torch.export``, read by ``torch.export.load``) or 'torchscript'.
        tap: Where to read: 'block:i', 'output' or 'projected'.
        pool: 'cls', 'mean' or 'none'.
        half: Store and compute in float16; only for ONNX.

    Returns:
        The largest difference, relative to the largest magnitude, and its bound.

    Raises:
        ValueError: The target, tap or pool is unknown; the file's suffix is another; a package is missing; ``half`` for
            another target than ONNX; the outputs differ by more than 1e-4 (2e-2 in float16).
    """
    path = Path(path)
    check_request(path, target, half)
    module = Deployed(model, tap=tap, pool=pool).eval()
    height, width = model.network.image_hw
    images_BCHW = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    temporary = path.with_name(f'.{path.stem}.{os.getpid()}.tmp{path.suffix}')
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter('ignore')  # exporters warn about their own future
            WRITERS[target](Half(module).eval() if half else module, images_BCHW, temporary, describe(model, tap, pool))
        error = compare(READERS[target](temporary), module, (height, width))
        bound = HALF_TOLERANCE if half else TOLERANCE
        if not error <= bound:  # NaN is no equality
            raise ValueError(
                f'{path} was not written: its output differs from the network by {error:.1e} of the largest magnitude; '
                f'{bound:.0e} is allowed.' + (' Export without --half.' if half else '')
            )
        move_into_place(temporary, path)
    finally:
        remove_path(temporary)
    return error, bound


def check_request(path: Path, target: str, half: bool) -> None:
    """Raise ValueError for what cannot be written, before anything is built."""
    if target not in GRAPHS:
        raise ValueError(f'--to {target}: use one of {", ".join(GRAPHS)}.')
    if path.suffix != SUFFIXES[target]:
        raise ValueError(f'{path}: a file for --to {target} ends in {SUFFIXES[target]}.')
    if not path.parent.is_dir():
        raise ValueError(f'{path}: the folder {path.parent} does not exist.')
    if half and target != 'onnx':
        raise ValueError(f'--half is for --to onnx; convert a {target} file with .half() after loading it.')
    missing = [name for name in ('onnx', 'onnxscript', 'onnxruntime') if find_spec(name) is None]
    if target == 'onnx' and missing:
        raise ValueError(f'--to onnx needs {", ".join(missing)}: pip install "mkd_plugin[onnx]".')


class Half(nn.Module):
    """A module that computes in float16 between float32 input and output."""

    def __init__(self, module: Deployed) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).half()

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Compute the features."""
        features: Tensor = self.module(images_BCHW.half()).float()
        return features


def describe(model: OpenedModel, tap: str, pool: str) -> dict[str, str]:
    """Return what a file says about itself, as text."""
    return dict(
        source=model.source,
        input='RGB in [0, 1], (B, 3, H, W) float32; normalisation is part of the graph',
        image_hw=json.dumps(list(model.network.image_hw)),
        pixel_mean=json.dumps([float(value) / 255 for value in model.pixels[0]]),
        pixel_std=json.dumps([float(value) / 255 for value in model.pixels[1]]),
        tap=tap,
        pool=pool,
    )


def write_onnx(module: nn.Module, images_BCHW: Tensor, path: Path, about: dict[str, str]) -> None:
    """Write an ONNX file of opset ``OPSET``."""
    program: Any = torch.onnx.export(
        module,
        (images_BCHW,),
        input_names=[INPUT],
        output_names=[OUTPUT],
        opset_version=OPSET,
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim('batch')},),
        verbose=False,
    )
    program.optimize()
    program.model.metadata_props.update(about)
    program.save(path, external_data=False)


def write_torch(module: nn.Module, images_BCHW: Tensor, path: Path, about: dict[str, str]) -> None:
    """Write a file of ``torch.export``; ``about`` is an extra file in it."""
    program = torch.export.export(module, (images_BCHW,), dynamic_shapes=({0: torch.export.Dim('batch')},))
    torch.export.save(program, path, extra_files={'about.json': json.dumps(about)})


def write_torchscript(module: nn.Module, images_BCHW: Tensor, path: Path, about: dict[str, str]) -> None:
    """Write a TorchScript archive by tracing."""
    traced = torch.jit.trace(module, images_BCHW)  # type: ignore[no-untyped-call]
    torch.jit.save(traced, str(path), _extra_files={'about.json': json.dumps(about)})


Runner = Callable[[Tensor], Tensor]


def read_onnx(path: Path) -> Runner:
    """Open a file in ONNX Runtime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return lambda images_BCHW: torch.from_numpy(np.asarray(session.run([OUTPUT], {INPUT: images_BCHW.numpy()})[0]))


def read_torch(path: Path) -> Runner:
    """Open a file of ``torch.export``."""
    module: Runner = torch.export.load(path).module()
    return module


def read_torchscript(path: Path) -> Runner:
    """Open a TorchScript archive that this process wrote."""
    module: Runner = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
    return module


WRITERS = {'onnx': write_onnx, 'torch': write_torch, 'torchscript': write_torchscript}
READERS = {'onnx': read_onnx, 'torch': read_torch, 'torchscript': read_torchscript}


def compare(run: Runner, module: Deployed, image_hw: tuple[int, int]) -> float:
    """Return the largest difference from the network over several batches, relative to the largest magnitude."""
    errors = []
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        for batch in BATCHES:
            images_BCHW = torch.rand(batch, 3, *image_hw, generator=generator)
            wanted, found = module(images_BCHW), run(images_BCHW)
            errors.append((found - wanted).abs().max() / wanted.abs().max())
    return float(torch.stack(errors).max())  # of tensors, max keeps NaN
