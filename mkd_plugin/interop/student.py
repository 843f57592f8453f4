"""Load a pre-trained student as a plain module."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mkd_plugin.checkpoint.infer_arch import check_claims, options_in_metadata
from mkd_plugin.checkpoint.load import convert_weights, load_backbone
from mkd_plugin.checkpoint.read import provenance_of, read_checkpoint, refusing, weights_of
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
        self.register_buffer('pixel_mean', torch.tensor(pixel_mean).view(-1, 1, 1) / 255)
        self.register_buffer('pixel_std', torch.tensor(pixel_std).view(-1, 1, 1) / 255)

    def normalise(self, images_BCHW: Tensor) -> Tensor:
        """Normalise RGB in [0, 1] as in the training."""
        return (images_BCHW - self.pixel_mean) / self.pixel_std

    def features(self, images_BCHW: Tensor, *, tap: str = 'block:-1', pool: str = 'mean') -> Tensor:
        """Compute features of images.

        Args:
            images_BCHW: RGB in [0, 1], of the size that the student was trained with.
            tap: Where to read: 'block:-1' as in fine-tuning, 'output' for after the final norm, 'block:i'.
            pool: 'mean' of the patch tokens, 'cls', or 'none' for all tokens.

        Returns:
            (B, D), or (B, 1 + L, D) with ``pool='none'``.

        Raises:
            ValueError: The tap or pool is unknown, or the images have another size.
        """
        tokens = self.backbone(self.normalise(images_BCHW), taps=(tap,)).tokens(tap)
        if pool == 'mean':
            return tokens[:, self.backbone.num_prefix :].mean(dim=1)
        if pool == 'cls':
            return tokens[:, 0]
        if pool == 'none':
            return tokens
        raise ValueError(f"pool='{pool}': use 'mean', 'cls' or 'none'.")

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return ``features(images_BCHW)``."""
        return self.features(images_BCHW)


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
        options = options_in_metadata(checkpoint)
        check_claims(convert_weights(weights_of(checkpoint, path), path, prefix)[1].tensors, options)
        network = VisionTransformer(**options)
        student = LoadedStudent(network, provenance['pixel_mean'], provenance['pixel_std'])
    load_backbone(network, path, prefix=prefix)
    return student.eval()
