"""`mkd train` rehearses a config before it writes anything: every shipped pre-training on digits computes its losses."""

from __future__ import annotations

import pytest

from mkd_plugin.models.distiller import MaskedDistiller
from mkd_plugin.preflight.rehearsal import rehearse
from mkd_plugin.utils.configs import config_root, get_config

NAMES = sorted(path.relative_to(config_root()).with_suffix('').as_posix() for path in config_root().glob('[a-z]*/*.py'))
DIGITS = [name for name in NAMES if name.endswith('_digits')]
UNREHEARSED = {  # beginning of a name → why
    'unified_view/peco': "its tokenizer is a module that the user's code registers",
    'unified_view/beitv2': "its host's initialisation reads values, which the meta device does not have",
}


@pytest.fixture
def rehearsed(monkeypatch):
    """The losses of each rehearsed step: a step that the meta device cannot compute is no mistake, and leaves none."""
    found, compute = [], MaskedDistiller.loss

    def loss(*args, **kwargs):
        found.append(compute(*args, **kwargs))
        return found[-1]

    monkeypatch.setattr(MaskedDistiller, 'loss', loss)
    return found


def test_names__are_found():
    assert len(DIGITS) >= 16 and len(NAMES) >= 110


@pytest.mark.parametrize('name', DIGITS)
def test_rehearse__every_pretraining_on_digits(name, rehearsed):
    cfg = get_config(name)
    rehearse(cfg)
    (losses,) = rehearsed
    assert {f'loss_{objective}' for objective in cfg.model.objectives} <= set(losses)
    assert all(losses[name].is_meta for name in losses if name.startswith('loss_'))


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in NAMES if name not in DIGITS])
def test_rehearse__every_pretraining(name, rehearsed):
    why = [reason for start, reason in UNREHEARSED.items() if name.startswith(start)]
    if why:
        pytest.skip(why[0])
    cfg = get_config(name)
    cfg.optim_wrapper = dict(type='OptimWrapper', optimizer=cfg.optim_wrapper.optimizer)  # some need a GPU
    rehearse(cfg)
    (losses,) = rehearsed
    assert {f'loss_{objective}' for objective in cfg.model.objectives} <= set(losses)


def test_rehearse__a_bfloat16_stream(rehearsed):
    cfg = get_config('maskdistill/maskdistill_digits')
    cfg.model.precision = dict(residual='bfloat16')
    rehearse(cfg)
    assert len(rehearsed) == 1


def test_rehearse__teachers_that_try_an_image_with_their_own_pixel_statistics(rehearsed):
    cfg = get_config('multi_teacher/radio_vit-base-p16_teachers-dinov3-siglip2-sam_8xb128-300e_in1k')
    cfg.optim_wrapper = dict(type='OptimWrapper', optimizer=cfg.optim_wrapper.optimizer)  # its own needs a GPU
    rehearse(cfg)
    assert len(rehearsed) == 1
    cfg.model.objectives.siglip2_cls.tap = 'block:99'
    with pytest.raises(ValueError, match="siglip2_cls.*'block:99'"):
        rehearse(cfg)
