"""Feature pyramids: from a ViT's maps of one stride to the strides of detection and segmentation heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.model import BaseModule
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from mkd_plugin.registry import MODELS

SCALES = (4, 2, 1, 0.5, 0.25)

# LayerNorm over the channels of a map, also for the hosts' heads: `norm_cfg=dict(type='mkd_plugin.LayerNorm2d')`. Give eps:
# mmcv's builder sets 1e-5 otherwise, not 1e-6.
MODELS.register_module(name='LayerNorm2d', module=LayerNorm2d)


@MODELS.register_module()
class ScalePyramid(BaseModule):
    """Rescales each map of the ViT to one stride, as BEiT, MAE and dBOT do before FPN and UperNet.

    A scale of 4 is two transposed convolutions with a norm and GELU between them, 2 is one, 1 the identity, 0.5 and 0.25 are
    max-pooling. The number of channels stays, and odd sides are rounded down, as in the papers' code.

    Args:
        in_channels: D, channels of every map.
        scales: Scale of each map; from stride 16 the default gives strides 4, 8, 16 and 32.
        norm_cfg: mmcv's config of the norm.
        init_cfg: mmengine's; by default torch's initialisation, which the papers' code keeps.

    Raises:
        ValueError: A scale is not in ``SCALES``.
    """

    def __init__(
        self,
        *,
        in_channels: int = 768,
        scales: Sequence[float] = (4, 2, 1, 0.5),
        norm_cfg: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        norm_cfg = dict(type='SyncBN') if norm_cfg is None else norm_cfg
        self.scales = check_scales(scales)
        self.rescale = nn.ModuleList(rescale(scale, [in_channels] * 3, norm_cfg) for scale in self.scales)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Rescale maps (B, D, h, w), one per scale, to (B, D, h · scale, w · scale).

        Raises:
            ValueError: The number of maps is not that of scales.
        """
        if len(maps) != len(self.scales):
            raise ValueError(
                f'ScalePyramid has {len(self.scales)} scales, {self.scales}, and got {len(maps)} maps: give the backbone as '
                'many out_indices as this neck has scales.'
            )
        return tuple(rescaled(map_BDhw) for rescaled, map_BDhw in zip(self.rescale, maps, strict=True))


@MODELS.register_module()
class SimplePyramid(BaseModule):
    """ViTDet's pyramid: every stride is computed from the last map only, without connections between strides.

    "Exploring Plain Vision Transformer Backbones for Object Detection" (arXiv 2203.16527), section 3: transposed
    convolutions that halve the channels, the identity, or max-pooling; then 1 × 1 and 3 × 3 convolutions, each with a norm.

    Args:
        in_channels: D, channels of the map.
        out_channels: C, channels of every stride.
        scales: From stride 16 the default gives strides 4, 8, 16 and 32.
        num_outs: Number of outputs; those beyond ``scales`` take every second position of the previous one.
        norm_cfg: mmcv's config of the norms; LayerNorm over channels by default.
        init_cfg: mmengine's; by default torch's initialisation.

    Raises:
        ValueError: A scale is not in ``SCALES``, or there are fewer outputs than scales.
    """

    def __init__(
        self,
        *,
        in_channels: int = 768,
        out_channels: int = 256,
        scales: Sequence[float] = (4, 2, 1, 0.5),
        num_outs: int = 5,
        norm_cfg: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        norm_cfg = dict(type='mkd_plugin.LayerNorm2d', eps=1e-6) if norm_cfg is None else norm_cfg
        self.scales = check_scales(scales)
        if num_outs < len(self.scales):
            raise ValueError(f'num_outs={num_outs}: there are {len(self.scales)} scales already. Remove some of them.')
        self.num_outs = num_outs
        widths = [in_channels, in_channels // 2, in_channels // 4]
        self.levels = nn.ModuleList()
        for scale in self.scales:
            width = widths[2 if scale == 4 else 1 if scale == 2 else 0]
            narrow = nn.Conv2d(width, out_channels, 1, bias=False)
            mix = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
            norms = [build_norm(norm_cfg, out_channels) for _ in range(2)]
            self.levels.append(nn.Sequential(rescale(scale, widths, norm_cfg), narrow, norms[0], mix, norms[1]))

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Compute ``num_outs`` maps (B, C, h · scale, w · scale) from the last of ``maps``, (B, D, h, w)."""
        out = [level(maps[-1]) for level in self.levels]
        while len(out) < self.num_outs:
            out.append(F.max_pool2d(out[-1], kernel_size=1, stride=2))
        return tuple(out)


def rescale(scale: float, widths: Sequence[int], norm_cfg: dict[str, Any]) -> nn.Module:
    """Layers that rescale a map to ``scale`` times its sides; ``widths``: channels before and after each doubling."""
    if scale == 4:
        return nn.Sequential(
            nn.ConvTranspose2d(widths[0], widths[1], 2, 2),
            build_norm(norm_cfg, widths[1]),
            nn.GELU(),
            nn.ConvTranspose2d(widths[1], widths[2], 2, 2),
        )
    if scale == 2:
        return nn.ConvTranspose2d(widths[0], widths[1], 2, 2)
    return nn.Identity() if scale == 1 else nn.MaxPool2d(round(1 / scale))


def build_norm(norm_cfg: dict[str, Any], channels: int) -> nn.Module:
    """Build a norm from mmcv's config, such as ``dict(type='GN', num_groups=32)``."""
    from mmcv.cnn import build_norm_layer  # not needed for pre-training

    norm: nn.Module = build_norm_layer(norm_cfg, channels)[1]
    return norm


def check_scales(scales: Sequence[float]) -> tuple[float, ...]:
    """Raise ValueError unless there are scales, and all are in ``SCALES``."""
    unknown = [scale for scale in scales if scale not in SCALES]
    if unknown or not scales:
        raise ValueError(
            f'scales={list(scales)}: a pyramid needs at least one scale, each of them one of {list(SCALES)}.'
        )
    return tuple(scales)
