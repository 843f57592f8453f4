"""Every class of another library gives the same output with exported weights, and imports back bit by bit."""

from __future__ import annotations

import pytest
import torch
from helpers.checkpoint_networks import tiny
from helpers.networks import scatter_weights

from mkd_plugin.interop.convert import convert_checkpoint
from mkd_plugin.interop.export import (
    DISTILLED,
    FOREIGN_CLASSES,
    NOT_SQUARE,
    PRE_NORM,
    REGISTERS,
    SCALE,
    SHARED,
    TARGETS,
    build_filled,
    export_weights,
    features_of,
    find_class,
    largest_error,
)
from mkd_plugin.models.vit import VisionTransformer

CASES = [
    pytest.param(foreign, features, id=f'{foreign.target}: {foreign.title}, {", ".join(sorted(features)) or "plain"}')
    for foreign in FOREIGN_CLASSES
    for every in (foreign.requires | foreign.supports,)
    for features in dict.fromkeys((foreign.requires, every, every - {NOT_SQUARE}))
]


@pytest.mark.parametrize(('foreign', 'features'), CASES)
def test_export_weights__same_output_and_back_again(foreign, features):
    if not foreign.installed:
        pytest.skip(f'{foreign.library.package} is not installed')
    network = tiny(features, foreign)
    assert features_of(network.options) == features
    chosen, weights, left_out = export_weights(network.state_dict(), network.options, foreign.target)
    assert (chosen, left_out) == (foreign, [])
    assert largest_error(foreign.library.run, build_filled(foreign, network.options, weights), network) < 2e-6
    back = foreign.format.to_ours(weights)
    assert not back.unknown
    own = network.state_dict()
    assert back.tensors.keys() == own.keys()
    assert all(torch.equal(back.tensors[name], own[name]) for name in own)


def test_export_weights__registers_take_the_position_of_cls_into_cls():
    pytest.importorskip('timm')
    foreign = find_class('timm', tiny(frozenset({REGISTERS})).options)
    network = tiny(frozenset({REGISTERS}))
    with torch.no_grad():
        network.pos_embed[:, :1] = 0.7
    _, weights, _ = export_weights(network.state_dict(), network.options, 'timm')
    assert largest_error(foreign.library.run, build_filled(foreign, network.options, weights), network) < 2e-6


@pytest.mark.parametrize(
    ('target', 'features', 'message'),
    [
        ('mmpretrain', {REGISTERS}, "'mmpretrain' cannot hold this network: .* has no place for register tokens"),
        ('mae', {SCALE, SHARED}, "'mae' .* MAE's encoder, has no place for a relative .* and layer scale"),
        ('hf', {REGISTERS, PRE_NORM}, "'hf' cannot hold this network: its closest class, .*register tokens"),
        (
            'openclip',
            {DISTILLED},
            'has no place for a distillation token, and needs a norm before the first block',
        ),
        (
            'openclip',
            set(),
            "'openclip' .* needs a norm before the first block and a projection, which this network",
        ),
    ],
)
def test_find_class__names_what_the_library_lacks(target, features, message):
    with pytest.raises(ValueError, match=message):
        find_class(target, tiny(frozenset(features)).options)


def test_find_class__unknown_target():
    with pytest.raises(ValueError, match="There is no target 'keras': use 'mkd' or one of"):
        find_class('keras', tiny().options)
    assert TARGETS == ('mae', 'timm', 'mmpretrain', 'hf', 'openclip')


def test_openclip__file_is_loaded_by_open_clip(tmp_path):
    open_clip = pytest.importorskip('open_clip')
    clip = dict(pre_norm=True, norm_eps=1e-5, projection=24, position='learned')
    network = VisionTransformer(arch=dict(width=32, depth=2, num_heads=2), img_size=32, patch_size=8, **clip).eval()
    scatter_weights(network).patch_embed.projection.bias.data.zero_()  # CLIP's patches have none
    about = dict(version='0', backbone=network.options, pixel_mean=[120.0] * 3, pixel_std=[60.0] * 3, teachers=[])
    state = {f'backbone.{name}': value for name, value in network.state_dict().items()}
    torch.save(dict(meta=dict(mkd_plugin=about), state_dict=state), tmp_path / 'run.pth')
    convert_checkpoint(tmp_path / 'run.pth', tmp_path / 'tower.pth', 'openclip')
    vision = dict(layers=2, width=32, head_width=16, patch_size=8, image_size=32)
    text = dict(context_length=8, vocab_size=50, width=32, heads=2, layers=1)
    model = open_clip.CLIP(24, vision, text).eval()
    keys = open_clip.load_checkpoint(model, str(tmp_path / 'tower.pth'), strict=False)
    assert keys.unexpected_keys == []
    assert not any(name.startswith('visual.') for name in keys.missing_keys)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = network(images, taps=('projected',)).tokens('projected')[:, 0]
        torch.testing.assert_close(model.encode_image(images), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_export_weights__bias_of_patches_that_clip_cannot_have():
    network = tiny(frozenset({PRE_NORM}))
    with torch.no_grad():
        network.patch_embed.projection.bias.fill_(0.1)
    with pytest.raises(ValueError, match='patch_embed.projection.bias'):
        export_weights(network.state_dict(), network.options, 'timm')


def test_export_weights__mask_token_is_left_out_and_named():
    network = tiny()
    state = {**network.state_dict(), 'mask_token': torch.ones(1, 1, 48)}
    assert export_weights(state, network.options, 'timm')[2] == ['mask_token']
    with pytest.raises(ValueError, match=r"'timm' has no place for \['extra'\]"):
        export_weights({**state, 'extra': torch.ones(1)}, network.options, 'timm')


def test_largest_error__sees_a_difference():
    pytest.importorskip('timm')
    network = tiny()
    foreign, weights, _ = export_weights(network.state_dict(), network.options, 'timm')
    theirs = build_filled(foreign, network.options, weights)
    with torch.no_grad():
        theirs.blocks[0].mlp.fc2.bias += torch.randn(48)
    assert largest_error(foreign.library.run, theirs, network) > 1e-3


def test_build_filled__says_what_is_missing():
    pytest.importorskip('timm')
    network = tiny()
    foreign, weights, _ = export_weights(network.state_dict(), network.options, 'timm')
    del weights['norm.weight']
    with pytest.raises(ValueError, match=r"timm VisionTransformer misses \['norm.weight'\]"):
        build_filled(foreign, network.options, weights)
