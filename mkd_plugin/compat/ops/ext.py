"""The module that is served as ``mmcv._ext``. An op that it lacks can be imported, and raises when it is called.

:func:`check_ops` refuses a model that needs such an op before it is trained.
"""
# ruff: noqa: F401

import inspect
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from torch import nn

from mkd_plugin.compat.hosts import how_to_compile_ops
from mkd_plugin.compat.ops.boxes import bbox_overlaps, nms, nms_match, softnms
from mkd_plugin.compat.ops.deformable import (
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    masked_col2im_forward,
    masked_im2col_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
    ms_deform_attn_backward,
    ms_deform_attn_forward,
)
from mkd_plugin.compat.ops.focal import (
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_forward,
    softmax_focal_loss_backward,
    softmax_focal_loss_forward,
)
from mkd_plugin.compat.ops.rois import roi_align_backward, roi_align_forward, roi_pool_backward, roi_pool_forward


def check_ops(model: nn.Module) -> None:
    """Raise ValueError if a layer of mmcv in the model needs a compiled op that is not there.

    A dry run on a CPU would not find all of them: some layers call the compiled op on a GPU only. A layer's ops are those that
    its file in ``mmcv.ops`` calls. Where mmcv has compiled ops, nothing is refused.
    """
    served = sys.modules.get('mmcv._ext')  # a second copy of ext.py, or mmcv's own library
    if served is None or not hasattr(served, 'how_to_compile_ops'):
        return
    for name, layer in model.named_modules():
        files = {kind.__module__ for kind in type(layer).__mro__ if kind.__module__.startswith('mmcv.ops.')}
        called = {op for file in files for op in re.findall(r'ext_module\.(\w+)', inspect.getsource(sys.modules[file]))}
        missing = sorted(called - vars(served).keys())
        if getattr(layer, 'pool_mode', 'avg') == 'max' and 'mmcv.ops.roi_align' in files:
            missing = ["roi_align with pool_mode='max'"]
        if missing:
            raise ValueError(
                f'model.{name} is a {type(layer).__name__}, which needs {", ".join(missing)} of the ops that mmcv compiles; '
                'it was installed without them, and torch has none in their place. Use another layer, or '
                f'{how_to_compile_ops()}'
            )


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
            f'place. If you need it, {how_to_compile_ops()}'
        )

    return missing
