"""Models with layers whose op is not there are refused by the layer's and the op's name."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from torch import nn

from mkd_plugin.compat.ops.ext import check_ops
from mkd_plugin.compat.patches import STAND_IN

mmcv_ops = pytest.importorskip('mmcv.ops')
COMPILED = find_spec('mmcv._ext').origin != str(STAND_IN)

SERVED = [
    lambda: mmcv_ops.RoIAlign(7), lambda: mmcv_ops.RoIPool(7, 0.25), lambda: mmcv_ops.MaskedConv2d(1, 1, 3),
    lambda: mmcv_ops.DeformConv2dPack(1, 1, 3), lambda: mmcv_ops.ModulatedDeformConv2dPack(1, 1, 3),
    lambda: mmcv_ops.MultiScaleDeformableAttention(8, 2), lambda: mmcv_ops.SigmoidFocalLoss(2.0, 0.25),
    lambda: mmcv_ops.SoftmaxFocalLoss(2.0, 0.25), lambda: mmcv_ops.SAConv2d(2, 2, 3),
    lambda: mmcv_ops.CornerPool('top'), lambda: mmcv_ops.CrissCrossAttention(8), lambda: nn.MaxPool2d(2),
]  # fmt: skip
MISSING = {
    'CARAFEPack.*carafe_backward, carafe_forward': lambda: mmcv_ops.CARAFEPack(4, 2),
    'PSAMask.*psamask_backward, psamask_forward': lambda: mmcv_ops.PSAMask('collect', (3, 3)),
    'RoIAlignRotated.*roi_align_rotated_backward': lambda: mmcv_ops.RoIAlignRotated(7, 0.25),
    "RoIAlign.*pool_mode='max'": lambda: mmcv_ops.RoIAlign(7, pool_mode='max'),
}


def test_check_ops__passes_what_torch_computes():
    check_ops(nn.ModuleList([make() for make in SERVED]))


@pytest.mark.skipif(COMPILED, reason='mmcv has its compiled ops here')
@pytest.mark.parametrize('what', MISSING)
def test_check_ops__names_layer_and_op(what):
    layer = MISSING[what]()
    inherited = type('Mine', (type(layer),), {})
    layer.__class__ = inherited  # a class of a host or a user that inherits mmcv's
    message = rf'^model\.neck\.1 is a Mine, which needs.*{what.partition(".*")[2]}.*--no-build-isolation'
    with pytest.raises(ValueError, match=message):
        check_ops(nn.ModuleDict({'neck': nn.Sequential(nn.Identity(), layer)}))


@pytest.mark.skipif(COMPILED, reason='mmcv has its compiled ops here')
def test_check_ops__leaves_a_real_library_alone(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'mmcv._ext', nn)  # any module that is not ours
    check_ops(MISSING["RoIAlign.*pool_mode='max'"]())
