"""What a checkpoint holds, and that packing loses nothing."""

from __future__ import annotations

import numpy as np
import pytest
from mmengine.logging import HistoryBuffer

from mkd_plugin.engine.portable_checkpoint import describe, is_plain, pack, unpack


def test_pack__round_trip_keeps_history_and_statistics():
    buffer = HistoryBuffer([1.0, 2.0, 4.0], [1, 2, 3], max_length=10)
    packed = pack(buffer)
    assert is_plain(packed)
    restored = unpack(packed)
    assert restored.mean() == buffer.mean() and restored.current() == 4.0 and restored.max_length == 10
    restored.update(8.0)
    assert restored.current() == 8.0


@pytest.mark.parametrize(
    'value, plain',
    [
        (dict(a=[1, 2.0, ('x', None)]), True),
        (np.float64(1.0), False),
        ([np.zeros(2)], False),
        (dict(a=object()), False),
    ],
)
def test_is_plain__accepts_what_weights_only_loading_does(value, plain):
    assert is_plain(value) == plain


def test_describe__leaves_other_networks_alone():
    from torch import nn

    assert describe(nn.Linear(2, 2)) == {}
