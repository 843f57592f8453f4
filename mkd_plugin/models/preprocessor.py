"""The last steps of the input pipeline, on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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

        The data samples of crops stay where they are: copying 512 of them takes 8 ms, and most methods read none.

        Raises:
            ValueError: The crops were not collated.
        """
        inputs = data['inputs']
        if isinstance(inputs, Crops):
            pixels, table_B4 = self.cast_data([inputs.pixels, inputs.table_B4])
            images = inputs._replace(pixels=pixels, table_B4=table_B4).images()
            return {'inputs': self._normalize(images), 'data_samples': data.get('data_samples')}
        first = inputs[0] if isinstance(inputs, list) and inputs else None
        if isinstance(first, Crop) or (isinstance(first, Tensor) and first.dim() == 3):
            raise ValueError(
                f'The inputs are a list of {len(inputs)} single images, not a batch. Crops of CropForDevice and PackCrops '
                "need train_dataloader.collate_fn=dict(type='mkd_plugin.collate_crops')."
            )
        return super().forward(dict(data), training)

    def _normalize(self, images: Tensor) -> Tensor:
        """Normalise as the parent does, but in place: on a CPU, allocating memory takes longer than the arithmetic."""
        if self._channel_conversion:
            images = images.flip(1)
        images = images.float()
        return images.sub_(self.mean).div_(self.std) if self._enable_normalize else images
