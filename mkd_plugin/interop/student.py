"""Load a pre-trained student as a plain module."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mkd_plugin.checkpoint.infer_arch import check_claims, options_in_metadata
from mkd_plugin.checkpoint.load import convert_weights, fill_network
from mkd_plugin.checkpoint.read import provenance_of, read_checkpoint, refusing, weights_of
from mkd_plugin.interop.pixels import AnyImages, to_rgb_batch
from mkd_plugin.models.vit import VisionTransformer


class LoadedStudent(nn.Module):
    """A student with its pixel normalisation.

    Args:
        backbone: The network.
        pixel_mean: Mean per channel, 0 … 255.
        pixel_std: Standard deviation per channel, 0 … 255.
    """

    backbone: VisionTransformer
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, backbone: VisionTransformer, pixel_mean: Sequence[float], pixel_std: Sequence[float]) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer('pixel_mean', torch.tensor(pixel_mean).view(-1, 1, 1))
        self.register_buffer('pixel_std', torch.tensor(pixel_std).view(-1, 1, 1))
        self._resized: dict[Any, VisionTransformer] = {}  # of the last other size and weights, without gradients

    def normalise(self, images_BCHW: Tensor) -> Tensor:
        """Normalise RGB in [0, 1] as in the training."""
        return (images_BCHW - self.pixel_mean / 255) / (self.pixel_std / 255)

    def features(
        self, images: AnyImages, *, tap: str = 'block:-1', pool: str = 'mean', gradients: bool = False
    ) -> Tensor:
        """Compute features of images.

        Args:
            images: RGB: uint8 or floats in [0, 1], (B, 3, H, W) or (3, H, W), or PIL images. For tensors of another size
                than in the training, the positions are resized; PIL images are resized and cropped to that size.
            tap: Where to read: 'block:-1' as in fine-tuning, 'output' for after the final norm, 'block:i'.
            pool: 'mean' of the patch tokens, 'cls', or 'none' for all tokens.
            gradients: Whether to record gradients; only for images of the training's size.

        Returns:
            (B, D), or (B, 1 + L, D) with ``pool='none'``.

        Raises:
            ValueError: The tap or pool is unknown, or there is no cls token; the images have another type or range, or a size
                that is no multiple of the patch.
        """
        with torch.set_grad_enabled(gradients):
            images_BCHW = to_rgb_batch(images, self.backbone.image_hw).to(self.pixel_mean.device)
            network = self.backbone if gradients else self.network_for(images_BCHW)
            return network(self.normalise(images_BCHW), taps=(tap,)).pool(tap, pool)

    def network_for(self, images_BCHW: Tensor) -> VisionTransformer:
        """Return the network with positions for images of this size."""
        size = (images_BCHW.shape[2], images_BCHW.shape[3])
        if size == self.backbone.image_hw:
            return self.backbone
        key = (size, *(parameter._version for parameter in self.backbone.parameters()))  # counts changes in place
        if key not in self._resized:
            self._resized = {key: at_size(self.backbone, size)}
        return self._resized[key].to(self.pixel_mean.device)

    def forward(self, images: AnyImages) -> Tensor:
        return self.features(images)


def at_size(network: VisionTransformer, image_hw: tuple[int, int]) -> VisionTransformer:
    """Return a network for images of another size, in eval mode on the CPU, with positions resized; itself for its own size.

    Raises:
        ValueError: The size cannot be cut into patches.
    """
    if image_hw == network.image_hw:
        return network
    patch = network.patch_size
    if image_hw[0] % patch or image_hw[1] % patch:
        near = tuple(max(patch, round(edge / patch) * patch) for edge in image_hw)
        raise ValueError(
            f'images: {image_hw[0]} × {image_hw[1]} px cannot be cut into patches of {patch} px. The nearest size that can '
            f'is {near[0]} × {near[1]}.'
        )
    resized = VisionTransformer(**{**network.options, 'img_size': image_hw}).eval()
    meta = {'mkd_plugin': {'backbone': network.options}}
    checkpoint = {'state_dict': network.state_dict(), 'meta': meta}
    fill_network(resized, checkpoint, 'the network', prefix='', grid=network.grid)
    return resized


def load_student(path: str | Path, *, part: str = 'student') -> LoadedStudent:
    """Rebuild a network from one of this package's pre-training checkpoints, without running code in it.

    Args:
        path: A checkpoint written by a run.
        part: 'student', or the name of a teacher in the file ('boot' in dBOT's configs).

    Returns:
        The network in eval mode, on the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not such a checkpoint, or does not cover the network.
    """
    checkpoint = read_checkpoint(path, lazy=True)
    with refusing(path):
        options = options_in_metadata(checkpoint)
    provenance = provenance_of(checkpoint)
    if 'backbone' not in provenance:
        raise ValueError(
            f'{path} does not say which network it holds: it was not written by a run with PortableCheckpointHook. '
            'Build the network and use mkd_plugin.checkpoint.load_backbone(network, path).'
        )
    if 'pixel_mean' not in provenance:
        raise ValueError(
            f'{path} does not say which pixel statistics its network needs: it was converted without --release. Convert it '
            'again with --release, or build the network and use mkd_plugin.checkpoint.load_backbone(network, path).'
        )
    teachers = provenance.get('teachers')
    parts = ['student', *(teachers if isinstance(teachers, list) else [])]
    if part not in parts:
        raise ValueError(
            f"{path} holds {parts}, not '{part}'. A checkpoint does not store a teacher that was loaded from a file "
            'or cut to fewer blocks.'
        )
    prefix = 'backbone.' if part == 'student' else f'teachers.{part}.network.'
    with refusing(path):
        check_claims(convert_weights(weights_of(checkpoint, path), path, prefix)[1].tensors, options)
        network = VisionTransformer(**options)
        student = LoadedStudent(network, provenance['pixel_mean'], provenance['pixel_std'])
    fill_network(network, checkpoint, path, prefix=prefix)
    return student.eval()
