"""CLIP's visual tower as the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mkd_plugin.models.teachers.vit import ViTTeacher
from mkd_plugin.registry import MODELS

CLIP_MEAN = (122.7709383, 116.7460125, 104.09373615)
CLIP_STD = (68.5005327, 66.6321579, 70.32316305)
CLIP_NETWORK = dict(position='learned', activation='quick_gelu', norm_eps=1e-5, pre_norm=True)
PROJECTIONS = {'b': 512, 'l': 768}


@MODELS.register_module()
class CLIPTeacher(ViTTeacher):
    """:class:`ViTTeacher` with the options of OpenAI's CLIP: its pixel statistics, ``ln_pre``, quick GELU, projection.

    Taps: 'projected' gives ``ln_post`` on every token and then the projection; 'output' the same without the projection;
    'block:-1' neither. Takes the options of :class:`ViTTeacher`.

    Args:
        arch: 'b' (use ``patch_size=16`` or 32), 'l' (``patch_size=14``), or a dict.
        network: Options that differ from OpenAI's, for example ``dict(activation='gelu')`` for most of OpenCLIP's.
    """

    def __init__(
        self,
        *,
        arch: str | dict[str, Any] = 'b',
        network: Mapping[str, Any] | None = None,
        pixel_mean: Sequence[float] = CLIP_MEAN,
        pixel_std: Sequence[float] = CLIP_STD,
        **options: Any,
    ) -> None:
        projection = PROJECTIONS.get(arch) if isinstance(arch, str) else None
        clip = {**CLIP_NETWORK, 'projection': projection, **(network or {})}
        super().__init__(arch=arch, network=clip, pixel_mean=pixel_mean, pixel_std=pixel_std, **options)
