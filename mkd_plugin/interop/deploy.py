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
from torch.nn import functional as F

from mkd_plugin.interop.open_model import OpenedModel, Statistics
from mkd_plugin.interop.student import at_size
from mkd_plugin.models.vit import VisionTransformer
from mkd_plugin.structures import TokenMask
from mkd_plugin.utils.files import move_into_place, remove_path

GRAPHS = ('onnx', 'torch', 'torchscript')
SUFFIXES = {'onnx': '.onnx', 'torch': '.pt2', 'torchscript': '.pt'}
OPSET = 20  # of ONNX: the first with GELU as one operator
BATCHES = (1, 2, 5)  # at which a graph is compared with the network
TOLERANCE, HALF_TOLERANCE = 1e-4, 2e-2  # largest difference, relative to the largest magnitude
INPUT, OUTPUT = 'images', 'features'

Size = tuple[int, int]
Shapes = dict[int, Any]  # dimension: torch.export.Dim


class AnySizeViT(VisionTransformer):
    """A ViT without relative positions that resizes its table of positions to the images, in the graph."""

    def embed(self, images_BCHW: Tensor, mask: TokenMask | None) -> Tensor:
        """Compute the input tokens of the first block for images of any number of whole patches, (B, P + L, D)."""
        patches_BLD = self.patch_embed(images_BCHW)
        if self.pos_embed is not None:
            grid = images_BCHW.shape[2] // self.patch_size, images_BCHW.shape[3] // self.patch_size
            table_1Dhw = self.pos_embed[:, self.num_placed :].mT.reshape(1, -1, *self.grid)
            # as timm resizes a checkpoint's; timm's own function compares sizes, which a graph of any size cannot
            resized_1Dhw = F.interpolate(table_1Dhw.float(), grid, mode='bicubic', antialias=True)
            patches_BLD = patches_BLD + resized_1Dhw.flatten(2).mT.to(patches_BLD.dtype)
        return self.pre_norm(self._with_prefix(patches_BLD))


class Deployed(nn.Module):
    """RGB in [0, 1] → features, in one module.

    Args:
        network: The network.
        pixels: Its pixel statistics, 0 … 255.
        tap: Where to read.
        pool: 'cls', 'mean' of the patch tokens, or 'none' for all tokens.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: VisionTransformer, pixels: Statistics, *, tap: str, pool: str) -> None:
        super().__init__()
        if pool not in ('cls', 'mean', 'none'):
            raise ValueError(f"pool='{pool}': use 'cls', 'mean' or 'none'.")
        if pool == 'cls' and network.cls_token is None:
            raise ValueError("pool='cls': the network has no cls token. Use 'mean'.")
        self.network, self.tap, self.pool = network, tap, pool
        mean, std = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) / 255 for values in pixels)
        self.register_buffer('mean', mean)
        self.register_buffer('std', std)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return (B, D), or (B, N, D) with ``pool='none'``."""
        return self.network((images_BCHW - self.mean) / self.std, taps=(self.tap,)).pool(self.tap, self.pool)


def export_graph(
    model: OpenedModel,
    path: str | Path,
    target: str,
    *,
    tap: str = 'block:-1',
    pool: str = 'mean',
    half: bool = False,
    image_hw: Size | None = None,
    any_size: bool = False,
) -> tuple[float, float]:
    """Write a network as a graph with a dynamic batch, and compare its output with the network's.

    The graph takes RGB in [0, 1], (B, 3, H, W) float32, and returns float32; normalisation is in it. The written file is
    opened again in its own runtime and compared at batches of 1, 2 and 5 random images; with ``any_size`` at three sizes.

    Args:
        model: The network, on the CPU.
        path: File to write; it appears only if the comparison holds.
        target: 'onnx', 'torch' (``torch.export``, read by ``torch.export.load``) or 'torchscript'.
        tap: Where to read: 'block:i', 'output' or 'projected'.
        pool: 'cls', 'mean' or 'none'.
        half: Store and compute in float16; only for ONNX.
        image_hw: Height and width of the images; the positions are resized to it. By default the network's own.
        any_size: Take images of any number of whole patches, at least two each way: the graph resizes the positions.

    Returns:
        The largest difference, relative to the largest magnitude, and its bound.

    Raises:
        ValueError: The target, tap or pool is unknown; the file's suffix is another; a package is missing; ``half`` for
            another target than ONNX; ``any_size`` for a relative position bias; the outputs differ by more than 1e-4
            (2e-2 in float16).
    """
    path = Path(path)
    check_request(path, target, half)
    check_network(model, tap, any_size)
    network = model.network if image_hw is None else at_size(model.network, image_hw)
    graph, sizes = network, [network.image_hw]
    if any_size:
        graph = AnySizeViT(**network.options)
        graph.load_state_dict(network.state_dict())
        patch, (rows, columns) = network.patch_size, network.grid
        sizes += [((rows + 2) * patch, (columns + 3) * patch), (max(2, rows // 2) * patch, max(2, columns - 1) * patch)]
    module = Deployed(graph, model.pixels, tap=tap, pool=pool).eval()
    images_BCHW = torch.rand(2, 3, *network.image_hw, generator=torch.Generator().manual_seed(0))
    about = describe(model, 'any' if any_size else network.image_hw, tap, pool)
    shapes = dynamic_shapes(network.patch_size if any_size else None)
    temporary = path.with_name(f'.{path.stem}.{os.getpid()}.tmp{path.suffix}')
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter('ignore')  # exporters warn about their own future
            WRITERS[target](Half(module).eval() if half else module, images_BCHW, shapes, temporary, about)
        run, errors = READERS[target](temporary), []
        for size in sizes:
            reference = Deployed(at_size(network, size), model.pixels, tap=tap, pool=pool).eval()
            errors.append(compare(run, reference, size))
        error, bound = float(torch.tensor(errors).max()), HALF_TOLERANCE if half else TOLERANCE
        if not error <= bound:  # of tensors, max keeps NaN, which is no equality
            raise ValueError(
                f'{path} was not written: its output differs from the network by {error:.1e} of the largest magnitude; '
                f'{bound:.0e} is allowed.' + (' Export without --half.' if half else '')
            )
        move_into_place(temporary, path)
    finally:
        remove_path(temporary)
    return error, bound


def dynamic_shapes(patch_size: int | None) -> Shapes:
    """Declare the axes of the images that a graph takes at any length: the batch, and with a patch size both sides."""
    dimension: Any = torch.export.Dim  # without a type, because its products have none
    shapes: Shapes = {0: dimension('batch')}
    if patch_size is not None:
        patches = {2: dimension('rows', min=2), 3: dimension('columns', min=2)}
        shapes |= {axis: patch_size * count for axis, count in patches.items()}
    return shapes


def check_network(model: OpenedModel, tap: str, any_size: bool) -> None:
    """Raise ValueError if the network lacks what a graph is asked for."""
    if tap in ('output', 'projected') and not model.final_norm:
        raise ValueError(
            f"{model.source} has no norm after its last block, so there is no '{tap}': use --tap block:-1."
        )
    if model.network.tap_spec(tap).kind != 'tokens':
        raise ValueError(f"--tap {tap}: relations cannot be pooled. Use 'block:i', 'output' or 'qkv:i'.")
    positions = (
        'a relative position bias' if model.network.relative_position else model.network.rotary and 'rotary positions'
    )
    if any_size and positions:
        raise ValueError(
            f'--any-size: {model.source} has {positions}, which a graph cannot resize. Give one size with --img-size.'
        )


def check_request(path: Path, target: str, half: bool) -> None:
    """Raise ValueError for what cannot be written, before anything is built."""
    if target not in GRAPHS:
        raise ValueError(f'--to {target}: use one of {", ".join(GRAPHS)}.')
    if path.suffix != SUFFIXES[target]:
        raise ValueError(f'{path}: a file for --to {target} ends in {SUFFIXES[target]}.')
    if path.is_dir():
        raise ValueError(f'{path} is a folder, and writing would replace all that is in it. Name a file.')
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


def describe(model: OpenedModel, image_hw: Size | str, tap: str, pool: str) -> dict[str, str]:
    """Return what a file says about itself, as text; pixel statistics in 0 … 255."""
    return dict(
        source=model.source,
        input='RGB in [0, 1], (B, 3, H, W) float32; normalisation is part of the graph',
        image_hw=json.dumps(image_hw),
        patch_size=str(model.network.patch_size),
        pixel_mean=json.dumps([float(value) for value in model.pixels[0]]),
        pixel_std=json.dumps([float(value) for value in model.pixels[1]]),
        tap=tap,
        pool=pool,
    )


def write_onnx(module: nn.Module, images_BCHW: Tensor, shapes: Shapes, path: Path, about: dict[str, str]) -> None:
    """Write an ONNX file of opset ``OPSET``; ``shapes`` are the dynamic dimensions."""
    program: Any = torch.onnx.export(
        module,
        (images_BCHW,),
        input_names=[INPUT],
        output_names=[OUTPUT],
        opset_version=OPSET,
        dynamo=True,
        dynamic_shapes=(shapes,),
        verbose=False,
    )
    program.optimize()
    program.model.metadata_props.update(about)
    program.save(path, external_data=False)


def write_torch(module: nn.Module, images_BCHW: Tensor, shapes: Shapes, path: Path, about: dict[str, str]) -> None:
    program = torch.export.export(module, (images_BCHW,), dynamic_shapes=(shapes,))
    torch.export.save(program, path, extra_files={'about.json': json.dumps(about)})


def write_torchscript(
    module: nn.Module, images_BCHW: Tensor, shapes: Shapes, path: Path, about: dict[str, str]
) -> None:
    """Write a TorchScript archive by tracing, in which all dimensions are dynamic that are not in a table."""
    traced = torch.jit.trace(module, images_BCHW)  # type: ignore[no-untyped-call]
    torch.jit.save(traced, str(path), _extra_files={'about.json': json.dumps(about)})


Runner = Callable[[Tensor], Tensor]


def read_onnx(path: Path) -> Runner:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return lambda images_BCHW: torch.from_numpy(np.asarray(session.run([OUTPUT], {INPUT: images_BCHW.numpy()})[0]))


WRITERS = {'onnx': write_onnx, 'torch': write_torch, 'torchscript': write_torchscript}
READERS: dict[str, Callable[[Path], Runner]] = {
    'onnx': read_onnx,
    'torch': lambda path: torch.export.load(path).module(),
    'torchscript': lambda path: torch.jit.load(str(path)),  # type: ignore[no-untyped-call]
}


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
