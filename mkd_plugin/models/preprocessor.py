"""The rest of the input pipeline, on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmpretrain.models.utils.data_preprocessor import SelfSupDataPreprocessor
from torch import Tensor

from mkd_plugin.datasets.crops import Crops
from mkd_plugin.registry import MODELS


@MODELS.register_module()
class CropPreprocessor(SelfSupDataPreprocessor):
    """mmpretrain's preprocessor, which also takes the crops of ``collate_crops``, resizes and mirrors them.

    Batches of whole images go through as they do there.

    Args:
        mean: Per channel, after the exchange of channels, in units of the stored image (0 … 255).
        std: Likewise.
        to_rgb: Whether to exchange the channels: the hosts' loaders, and ours, give BGR.
        non_blocking: Copy to the device while this process goes on; takes pinned memory (``train_dataloader.pin_memory``).
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
        """The batch of a loader → ``inputs``, normalised images (B, 3, H, W), and ``data_samples``.

        Raises:
            ValueError: The crops were not collated.
        """
        crops = data['inputs']
        if isinstance(crops, Crops):
            moved: Crops = self.cast_data(crops)
            samples = self.cast_data(data.get('data_samples'))
            return {'inputs': self._normalize(moved.images()), 'data_samples': samples}
        if isinstance(crops, list) and crops and isinstance(crops[0], Tensor) and crops[0].dim() == 3:
            raise ValueError(
                f'{len(crops)} single images, the first of shape {tuple(crops[0].shape)}, are no batch. Crops of '
                "CropForDevice need train_dataloader.collate_fn=dict(type='mkd_plugin.collate_crops')."
            )
        return super().forward(dict(data), training)

    def _normalize(self, images: Tensor) -> Tensor:
        """As the parent does, in place: on a CPU, memory that is new every time takes longer than the arithmetic."""
        if self._channel_conversion:
            images = images.flip(1)
        images = images.float()
        return images.sub_(self.mean).div_(self.std) if self._enable_normalize else images
