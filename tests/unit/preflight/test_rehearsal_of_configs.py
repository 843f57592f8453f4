"""`mkd train` rehearses a config before it writes anything: every shipped pre-training that needs no GPU passes."""

from __future__ import annotations

import pytest

from mkd_plugin.preflight.rehearsal import rehearse
from mkd_plugin.utils.configs import config_root, get_config

DIGITS = sorted(
    path.relative_to(config_root()).with_suffix('').as_posix() for path in config_root().glob('[a-z]*/*_digits.py')
)


@pytest.mark.parametrize('name', DIGITS)
def test_rehearse__every_pretraining_on_digits(name):
    rehearse(get_config(name))


def test_rehearse__a_bfloat16_stream():
    cfg = get_config('maskdistill/maskdistill_digits')
    cfg.model.precision = dict(residual='bfloat16')
    rehearse(cfg)
