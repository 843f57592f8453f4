"""Pyramids: from a ViT's maps of one stride to the strides that detection and segmentation work on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.model import BaseModule
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from mkd_plugin.registry import MODELS

SCALES = (4, 2, 1, 0.5, 0.25)

# `norm_cfg=dict(type='mkd_plugin.LayerNorm2d')` in the hosts' heads as well: LayerNorm over the channels of a map, eps 1e-6
# unless mmcv's builder is asked, which says 1e-5
MODELS.register_module(name='LayerNorm2d', module=LayerNorm2d)


@MODELS.register_module()
class ScalePyramid(BaseModule):
    """One map of the ViT for each stride, brought to it alone: what BEiT, MAE and dBOT put before FPN and UperNet.

    × 4 is two transposed convolutions with a norm and GELU between, × 2 is one, × 1 nothing, × 0.5 and × 0.25 max-pooling;
    the number of channels stays. A side that does not divide is rounded down, as everywhere in the papers' code.

    Args:
        in_channels: D, channels of every map.
        scales: Of each map, in the maps' order; from stride 16 these are strides 4, 8, 16 and 32.
        norm_cfg: mmcv's, of the one norm.
        init_cfg: mmengine's; by default weights are drawn as torch draws them, which the papers' code keeps.

    Raises:
        ValueError: A scale that is none of ``SCALES``.
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
        """Maps (B, D, h, w), as many as scales → as many (B, D, h · scale, w · scale).

        Raises:
            ValueError: There are more or fewer maps than scales.
        """
        if len(maps) != len(self.scales):
            raise ValueError(
                f'ScalePyramid has {len(self.scales)} scales, {self.scales}, and got {len(maps)} maps: give the backbone as '
                'many out_indices as this neck has scales.'
            )
        return tuple(rescaled(map_BDhw) for rescaled, map_BDhw in zip(self.rescale, maps, strict=True))


@MODELS.register_module()
class SimplePyramid(BaseModule):
    """ViTDet's pyramid: every stride from the last map alone, with nothing going from one stride to another.

    "Exploring Plain Vision Transformer Backbones for Object Detection" (arXiv 2203.16527), section 3: transposed
    convolutions that halve the channels, or nothing, or max-pooling; then 1 × 1 and 3 × 3 convolutions, each with a norm.

    Args:
        in_channels: D, channels of the map.
        out_channels: C, channels of every stride.
        scales: From stride 16 these are strides 4, 8, 16 and 32.
        num_outs: Strides given; those beyond ``scales`` take every second position of the one before.
        norm_cfg: mmcv's; LayerNorm over channels by default.
        init_cfg: mmengine's; by default weights are drawn as torch draws them.

    Raises:
        ValueError: A scale that is none of ``SCALES``; fewer outputs than scales.
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
            raise ValueError(
                f'num_outs={num_outs}: there are {len(self.scales)} scales already. Take some of them away.'
            )
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
        """Maps of which the last, (B, D, h, w), is read → ``num_outs`` of (B, C, h · scale, w · scale)."""
        out = [level(maps[-1]) for level in self.levels]
        while len(out) < self.num_outs:
            out.append(F.max_pool2d(out[-1], kernel_size=1, stride=2))
        return tuple(out)


def rescale(scale: float, widths: Sequence[int], norm_cfg: dict[str, Any]) -> nn.Module:
    """What brings a map to ``scale`` times its sides.

    Args:
        scale: One of ``SCALES``.
        widths: Channels before, after the first and after the second doubling.
        norm_cfg: Of the norm between two doublings.
    """
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
    """A norm by mmcv's rules: ``SyncBN``, ``BN``, ``dict(type='GN', num_groups=…)``, ours."""
    from mmcv.cnn import build_norm_layer  # what only pre-trains needs no mmcv

    norm: nn.Module = build_norm_layer(norm_cfg, channels)[1]
    return norm


def check_scales(scales: Sequence[float]) -> tuple[float, ...]:
    """Raise ValueError unless there are scales, all of them among ``SCALES``."""
    unknown = [scale for scale in scales if scale not in SCALES]
    if unknown or not scales:
        raise ValueError(
            f'scales={list(scales)}: a pyramid needs at least one scale, each of them one of {list(SCALES)}.'
        )
    return tuple(scales)
