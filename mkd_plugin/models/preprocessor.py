"""The last steps of the input pipeline, on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from mmpretrain.models.utils.data_preprocessor import SelfSupDataPreprocessor
from torch import Tensor

from mkd_plugin.datasets.crops import Crop, Crops
from mkd_plugin.registry import MODELS


@MODELS.register_module()
class CropPreprocessor(SelfSupDataPreprocessor):
    """mmpretrain's preprocessor, which also resizes and mirrors the crops of ``collate_crops``.

    Batches of whole images are processed as by mmpretrain.

    Args:
        mean: Per channel after the exchange of channels, in the units of stored images (0 … 255).
        std: Likewise.
        to_rgb: Whether to exchange the channels: the hosts' loaders and ours return BGR.
        non_blocking: Copy to the device asynchronously; requires pinned memory (``train_dataloader.pin_memory``).
    """

    def __init__(
        self,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        to_rgb: bool = False,
        non_blocking: bool = False,
    ) -> None:
        super().__init__(mean=mean, std=std, to_rgb=to_rgb, non_blocking=non_blocking)

    def forward(self, data: Mapping[str, Any], training: bool = False) -> Any:
        """Return ``inputs``, normalised images (B, 3, H, W), and ``data_samples``.

        The data samples of crops stay where they are: copying 512 of them takes 8 ms, and most methods read none. Raises
        ValueError for crops that were not collated.
        """
        inputs, samples = data['inputs'], data.get('data_samples')
        if isinstance(inputs, Crops):
            beside = self.device.type == 'cuda' and inputs.pixels.is_cpu
            images = self._make_images_beside(inputs) if beside else self._make_images(inputs)
            return {'inputs': images, 'data_samples': samples}
        first = inputs[0] if isinstance(inputs, list) and inputs else None
        if isinstance(first, Crop) or (isinstance(first, Tensor) and first.dim() == 3):
            raise ValueError(
                f'The inputs are a list of {len(inputs)} single images, not a batch. Crops of CropForDevice and PackCrops '
                "need train_dataloader.collate_fn=dict(type='mkd_plugin.collate_crops')."
            )
        if not self._channel_conversion:
            return super().forward(dict(data), training)
        inputs, samples = self.cast_data([inputs, samples])
        several = isinstance(inputs, list)  # views; the parent's list of channels would make a GPU wait
        normalised = [self._normalize(view) for view in inputs] if several else self._normalize(inputs)
        return {'inputs': normalised, 'data_samples': samples}

    def _make_images(self, crops: Crops) -> Tensor:
        """Copy, resize and normalise crops."""
        pixels, table_B4 = self.cast_data([crops.pixels, crops.table_B4])
        return self._normalize(crops._replace(pixels=pixels, table_B4=table_B4).images())

    def _make_images_beside(self, crops: Crops) -> Tensor:
        """Do so in a stream of its own, while the GPU still computes the step before."""
        copies, step = copy_stream(self.device), torch.cuda.current_stream(self.device)
        with torch.cuda.stream(copies):
            images = self._make_images(crops)
        step.wait_stream(copies)
        images.record_stream(step)  # the other stream must not use their memory again before the step has
        return images

    def _normalize(self, images: Tensor) -> Tensor:
        """Normalise as the parent does, but in place: on a CPU, allocating memory takes longer than the arithmetic."""
        if self._channel_conversion:
            images = images.flip(1)
        images = images.float()
        return images.sub_(self.mean).div_(self.std) if self._enable_normalize else images


@cache
def copy_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream in which a device gets its batches."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
