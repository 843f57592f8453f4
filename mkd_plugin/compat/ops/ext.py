"""The module that is served as ``mmcv._ext``. An op that it lacks can be imported, and raises when it is called."""
# ruff: noqa: F401

from collections.abc import Callable
from typing import Any, NoReturn

from mkd_plugin.compat.ops.attention import ms_deform_attn_backward, ms_deform_attn_forward
from mkd_plugin.compat.ops.boxes import bbox_overlaps, nms, nms_match, softnms
from mkd_plugin.compat.ops.convolutions import (
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    masked_col2im_forward,
    masked_im2col_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
)
from mkd_plugin.compat.ops.focal import (
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_forward,
    softmax_focal_loss_backward,
    softmax_focal_loss_forward,
)
from mkd_plugin.compat.ops.missing import how_to_compile
from mkd_plugin.compat.ops.rois import roi_align_backward, roi_align_forward, roi_pool_backward, roi_pool_forward


def get_compiler_version() -> str:
    """Return the text for mmcv's environment report."""
    return 'none: ops of torch and torchvision, served by mkd_plugin'


get_compiling_cuda_version = get_compiler_version


def __getattr__(name: str) -> Callable[..., Any]:
    """Return a function that raises, for every other op: importing ``mmcv.ops`` needs all of them to exist."""
    if name.startswith('_'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

    def missing(*_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError(
            f'{name} is one of the ops that mmcv compiles, and it was installed without them; mkd_plugin has no other in its '
            f'place. If you need it, {how_to_compile()}'
        )

    return missing
