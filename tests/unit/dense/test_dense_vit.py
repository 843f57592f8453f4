"""The ViT as a backbone of detectors and segmentors: any image size, every checkpoint, and what it computes."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.networks import scatter_weights
from helpers.networks_modern import ours_of, timm_network
from helpers.networks_timm import timm_beit, timm_vit
from torch.nn import functional as F

from mkd_plugin.checkpoint import load_backbone
from mkd_plugin.checkpoint.formats import FORMATS
from mkd_plugin.dense import DenseViT
from mkd_plugin.models.students import MaskTokenViT, VisibleViT
from mkd_plugin.models.vit import VisionTransformer
from mkd_plugin.registry import MODELS

ARCH = dict(width=48, depth=4, num_heads=4)
TINY = dict(arch=ARCH, img_size=32, patch_size=8, out_indices=(0, 1, 3))
RELATIVE = dict(position='none', relative_position='per_block', layer_scale=0.5)
TABLES = '*.rel_pos_bias.*'


def dense(**options):
    return scatter_weights(DenseViT(**{**TINY, **options})).eval()


def save(network, path, prefix=''):
    torch.save({'state_dict': {prefix + name: value for name, value in network.state_dict().items()}}, path)
    return path


def maps_of(plain, images, blocks=(0, 1, 3)):
    taps = [f'block:{block}' for block in blocks]
    found = plain(images, taps=taps)
    return [found.tokens(tap)[:, plain.num_prefix :].transpose(1, 2).unflatten(2, plain.grid) for tap in taps]


def assert_maps_equal(found, wanted, tolerance=2e-6):
    assert len(found) == len(wanted)
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.shape == theirs.shape
        assert ((mine - theirs).abs().max() / theirs.abs().max()).item() < tolerance


@pytest.mark.parametrize('size', [(32, 32), (40, 64), (16, 24)])
def test_forward__is_timms_vit_at_any_size(tmp_path, size):
    theirs = timm_vit()
    torch.save(theirs.state_dict(), tmp_path / 'timm.pth')
    ours = DenseViT(**TINY).eval()
    report = load_backbone(ours, tmp_path / 'timm.pth')
    assert (report.missing, report.resized) == ([], [])
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        wanted = theirs.forward_intermediates(images, indices=[0, 1, 3], intermediates_only=True)
        assert_maps_equal(ours(images), wanted)


@pytest.mark.parametrize('size', [(32, 32), (40, 64), (16, 24)])
@pytest.mark.parametrize('shared', [True, False], ids=['shared', 'per block'])
def test_forward__is_timms_beit_at_any_size(tmp_path, shared, size):
    theirs = timm_beit(shared)
    torch.save(theirs.state_dict(), tmp_path / 'timm.pth')
    ours = DenseViT(**TINY, **RELATIVE).eval()
    assert load_backbone(ours, tmp_path / 'timm.pth').missing == []
    theirs.set_input_size(size)
    images = torch.randn(2, 3, *size)
    wanted = theirs.forward_intermediates(images, indices=[0, 1, 3], intermediates_only=True)
    assert_maps_equal(ours(images), wanted, 1e-5)


def test_init_weights__resizes_tables_to_img_size(tmp_path):
    theirs = timm_beit(shared=False)
    torch.save(theirs.state_dict(), tmp_path / 'timm.pth')
    theirs.set_input_size((48, 40))
    init = dict(type='Pretrained', checkpoint=str(tmp_path / 'timm.pth'))
    ours = MODELS.build(dict(type='DenseViT', **{**TINY, **RELATIVE, 'img_size': (48, 40)}, init_cfg=init)).eval()
    ours.init_weights()
    images = torch.randn(1, 3, 48, 40)
    with torch.no_grad():
        wanted = theirs.forward_intermediates(images, indices=[0, 1, 3], intermediates_only=True)
        assert_maps_equal(ours(images), wanted, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('size', [(224, 224), (512, 384)])
@pytest.mark.parametrize('make', [timm_vit, timm_beit])
def test_forward__is_timms_at_full_size(tmp_path, make, size):
    theirs = make(sizes=dict(patch_size=16, embed_dim=768, depth=12, num_heads=12), img_size=224, std=0.02)
    torch.save(theirs.state_dict(), tmp_path / 'timm.pth')
    ours = DenseViT(**(RELATIVE if make is timm_beit else {})).eval()
    load_backbone(ours, tmp_path / 'timm.pth')
    if make is timm_beit:
        theirs.set_input_size(size)
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        wanted = theirs.forward_intermediates(images, indices=[3, 5, 7, 11], intermediates_only=True)
        assert_maps_equal(ours(images), wanted, 1e-4)


def test_init_weights__dbots_student(tmp_path):
    student = scatter_weights(VisibleViT(arch=ARCH, img_size=32, patch_size=8)).eval()
    init = dict(type='Pretrained', checkpoint=str(save(student, tmp_path / 'stage_3.pth', 'backbone.')))
    ours = MODELS.build(dict(type='mkd_plugin.DenseViT', **TINY, init_cfg=init)).eval()
    ours.init_weights()
    images = torch.randn(2, 3, 32, 32)
    assert_maps_equal(ours(images), maps_of(student, images))


def test_init_weights__relative_bias_and_layer_scale_from_scratch_on_top_of_an_absolute_checkpoint(tmp_path):
    student = scatter_weights(VisibleViT(arch=ARCH, img_size=32, patch_size=8)).eval()
    init = dict(
        type='Pretrained',
        checkpoint=str(save(student, tmp_path / 'stage_2.pth', 'backbone.')),
        prefix='backbone.',
        allow_missing=[TABLES, '*.gamma?.weight'],
    )
    ours = DenseViT(**TINY, relative_position='per_block', layer_scale=1.0, init_cfg=init).eval()
    ours.init_weights()
    images = torch.randn(2, 3, 32, 32)
    assert_maps_equal(ours(images), maps_of(student, images))  # a bias of zeros and a scale of ones change nothing
    without = DenseViT(**TINY, relative_position='per_block', init_cfg={**init, 'allow_missing': ['ln1.weight']})
    with pytest.raises(ValueError, match='rel_pos_bias'):
        without.init_weights()


def test_load_backbone__maskdistills_student(tmp_path):
    options = dict(arch=ARCH, img_size=32, patch_size=8, position='none', relative_position='shared', layer_scale=0.5)
    student = scatter_weights(MaskTokenViT(**options)).eval()
    ours = DenseViT(**TINY, **RELATIVE).eval()
    report = load_backbone(ours, save(student, tmp_path / 'epoch.pth', 'backbone.'))
    assert (report.missing, len(report.resized)) == ([], ARCH['depth'])
    images = torch.randn(2, 3, 32, 32)
    assert_maps_equal(ours(images), maps_of(student, images))


FORMS = {
    'timm': {},
    'hf_vit': {},
    'hf_clip': dict(pre_norm=True, norm_eps=1e-5, activation='quick_gelu'),
    'clip': dict(pre_norm=True, norm_eps=1e-5, activation='quick_gelu'),
    'hf_dinov2': dict(layer_scale=0.5),
}


@pytest.mark.parametrize('name', FORMS)
def test_load_backbone__other_formats(tmp_path, name):
    form = FORMATS[name]
    options = FORMS[name]
    source = scatter_weights(
        VisionTransformer(arch=ARCH, img_size=32, patch_size=8, position='learned', **options)
    ).eval()
    if 'pre_norm' in options:
        torch.nn.init.zeros_(source.patch_embed.projection.bias)
    theirs, lost = form.to_theirs(source.state_dict())
    assert lost == []
    torch.save(theirs, tmp_path / 'file.pth')
    ours = DenseViT(**TINY, **options).eval()
    assert load_backbone(ours, tmp_path / 'file.pth').missing == []
    images = torch.randn(2, 3, 32, 32)
    assert_maps_equal(ours(images), maps_of(source, images))


@pytest.mark.parametrize(
    'other', [dict(patch_size=4, img_size=16), dict(arch=dict(width=32, depth=4, num_heads=4))], ids=['patch', 'width']
)
def test_load_backbone__of_other_sizes_raises(tmp_path, other):
    student = VisibleViT(**{**dict(arch=ARCH, img_size=32, patch_size=8), **other})
    numbers = 'patch 4 in the file and 8 here' if 'patch_size' in other else 'width 32 in the file and 48 here'
    with pytest.raises(ValueError, match=numbers):
        load_backbone(DenseViT(**TINY), save(student, tmp_path / 'file.pth'))


@pytest.mark.parametrize(('size', 'grid'), [((5, 3), (1, 1)), ((33, 8), (5, 1)), ((20, 47), (3, 6))])
@pytest.mark.parametrize('options', [{}, RELATIVE, dict(window_size=2)], ids=['absolute', 'relative', 'windows'])
def test_forward__pads_right_and_below_with_zeros(size, grid, options):
    network = dense(**options)
    images = torch.randn(2, 3, *size)
    padded = torch.zeros(2, 3, grid[0] * 8, grid[1] * 8)
    padded[:, :, : size[0], : size[1]] = images
    found = network(images)
    assert found[0].shape == (2, 48, *grid)
    for mine, wanted in zip(found, network(padded), strict=True):
        assert torch.equal(mine, wanted)


OPTIONS = {
    'absolute': {},
    'fixed': dict(position='sincos'),
    'relative': RELATIVE,
    'both': dict(relative_position='per_block', layer_scale=1.0),
    'windows': dict(window_size=3, global_blocks=(1,)),
    'windows and relative': dict(window_size=2, relative_position='per_block'),
    'deit, dinov2': dict(distillation_token=True, num_registers=2),
    'clip': dict(pre_norm=True, activation='quick_gelu'),
}


@pytest.mark.parametrize('name', OPTIONS)
def test_backward__reaches_every_parameter(name):
    network = dense(**OPTIONS[name]).train()
    sum(part.square().sum() for part in network(torch.randn(1, 3, 40, 24))).backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []
    still = [name for name, parameter in network.named_parameters() if not parameter.grad.any()]
    assert still == []


@pytest.mark.parametrize('name', ['absolute', 'both', 'windows and relative'])
def test_activation_checkpointing__gives_the_same_gradients(name):
    plain = dense(**OPTIONS[name], drop_path_rate=0.3).train()
    saving = dense(**OPTIONS[name], drop_path_rate=0.3, activation_checkpointing=True).train()
    saving.load_state_dict(plain.state_dict())
    images = torch.randn(3, 3, 40, 24)
    for network in (plain, saving):
        torch.manual_seed(1)
        sum(part.square().sum() for part in network(images)).backward()
    for (key, mine), wanted in zip(saving.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(
            mine.grad, wanted.grad, rtol=1e-5, atol=1e-5, msg=lambda text, key=key: f'{key}: {text}'
        )


@pytest.mark.parametrize('name', ['absolute', 'both', 'windows and relative'])
def test_forward__under_bf16_autocast(name):
    network = scatter_weights(DenseViT(**{**TINY, **OPTIONS[name]}), 0.05)
    images = torch.randn(2, 3, 40, 24)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = network(images)
    sum(part.float().square().sum() for part in found).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())
    for mine, wanted in zip(found, network(images), strict=True):
        torch.testing.assert_close(mine.float(), wanted, rtol=0.1, atol=0.03 * wanted.abs().max().item())


def test_drop_path__drops_whole_branches_of_an_image():
    network = dense(drop_path_rate=0.5).train()
    tokens, grid, _ = network.embed_plane(torch.randn(2, 3, 16, 24))
    kept_2B11 = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).view(2, 2, 1, 1)
    updated = network.layers[-1](tokens, grid, kept_2B11=kept_2B11)
    assert grid == (2, 3) and torch.equal(updated[1], tokens[1]) and not torch.equal(updated[0], tokens[0])
    given = []
    for block in network.layers:
        block.register_forward_pre_hook(lambda _, arguments: given.append(arguments[3]))
    network(torch.randn(2, 3, 16, 24))
    for factors, rate in zip(given, network.drop_path.rates, strict=True):
        assert factors.max().item() in (0, pytest.approx(1 / (1 - rate)))


def test_windows__last_block_of_each_quarter_is_global():
    network = DenseViT(arch=dict(width=8, depth=12, num_heads=1), img_size=32, patch_size=8, window_size=2)
    assert [index for index, window in enumerate(network.windows) if window is None] == [2, 5, 8, 11]


def test_windows__images_do_not_mix_and_windows_do_not_either():
    network = dense(window_size=2, global_blocks=())
    images = torch.randn(1, 3, 32, 32)
    changed = images.clone()
    changed[:, :, 16:, 16:] += 1
    for before, after in zip(network(images), network(changed), strict=True):
        same = torch.isclose(before, after, rtol=1e-5, atol=1e-6).all(1)[0]
        assert same.tolist() == [[row < 2 or column < 2 for column in range(4)] for row in range(4)]


def test_windows__a_checkpoint_with_cls_is_taken(tmp_path):
    student = scatter_weights(VisibleViT(arch=ARCH, img_size=32, patch_size=8))
    network = DenseViT(**TINY, window_size=2)
    report = load_backbone(network, save(student, tmp_path / 'file.pth', 'backbone.'))
    assert report.missing == []
    assert 'cls_token' not in network.state_dict()


def test_get_layer_depth__of_every_parameter():
    network = dense(relative_position='per_block', layer_scale=1.0, pre_norm=True)
    for name, _ in network.named_parameters():
        depth, layers = network.get_layer_depth(f'backbone.{name}', prefix='backbone.')
        wanted = int(name.split('.')[1]) + 1 if name.startswith('layers.') else 0
        assert (depth, layers) == (wanted, 6), name
    assert network.get_layer_depth('neck.lateral.weight', prefix='backbone.') == (5, 6)


def test_state_dict__is_that_of_the_plain_vit_without_its_final_norm():
    plain = VisionTransformer(arch=ARCH, img_size=32, patch_size=8, position='learned')
    names = {name for name in plain.state_dict() if not name.startswith('ln1.')}
    assert set(DenseViT(**TINY).state_dict()) == names


def test_copy__of_a_network_that_has_run(tmp_path):
    network = dense(**RELATIVE)
    images = torch.randn(1, 3, 40, 24)
    found = network(images)
    for mine, wanted in zip(copy.deepcopy(network)(images), found, strict=True):
        assert torch.equal(mine, wanted)


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (dict(out_indices=(0, 1)), r'the last of 4 must be among them .* \(0, 1, 2, 3\)'),
        (dict(out_indices=(1, 1, 3)), 'ascending'),
        (dict(out_indices=()), 'the last of 4'),
        (dict(relative_position='shared'), "Use 'per_block'"),
        (dict(projection=8), 'not projected'),
        (dict(window_size=0), 'at least 1'),
        (dict(window_size=2, global_blocks=(4,)), 'from 0 to 3'),
        (dict(global_blocks=(1,)), 'without window_size'),
        (dict(window_size=2, num_registers=1), 'holds patches only'),
    ],
)
def test_dense_vit__bad_options_raise(options, words):
    with pytest.raises(ValueError, match=words):
        DenseViT(**{**TINY, **options})


def test_embed_plane__float32_positions_are_resized_once_and_antialiased():
    network = dense()
    tokens, grid, _ = network.embed_plane(torch.zeros(1, 3, 16, 16))
    table = network.pos_embed[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    wanted = F.interpolate(table, size=grid, mode='bicubic', antialias=True).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens[:, 1:], wanted + network.patch_embed.projection.bias)


@pytest.mark.parametrize('size', [(32, 32), (40, 64), (16, 24)])
@pytest.mark.parametrize('name', ['dinov3', 'dinov3_plus', 'siglip'])
@torch.no_grad()
def test_forward__is_timms_dinov3_and_siglip_at_any_size(tmp_path, name, size):
    """Rotary positions of the image's grid; registers, or no cls."""
    theirs = timm_network(name, depth=4, dynamic_img_size=True)
    torch.save(theirs.state_dict(), tmp_path / 'timm.pth')
    options = ours_of(name, arch=dict(ours_of(name)['arch'], depth=4))
    init = dict(type='Pretrained', checkpoint=str(tmp_path / 'timm.pth'))
    ours = MODELS.build(dict(type='DenseViT', **options, out_indices=(0, 1, 3), init_cfg=init)).eval()
    ours.init_weights()
    images = torch.randn(2, 3, *size)
    wanted = theirs.forward_intermediates(images, indices=[0, 1, 3], intermediates_only=True)
    assert_maps_equal(ours(images), wanted, 1e-5)
    padded = ours(images[..., 1:, 1:])[0]
    assert padded.shape == wanted[0].shape and not torch.equal(padded, wanted[0])


@torch.no_grad()
def test_forward__is_timms_eva02_at_the_size_that_it_was_set_to(tmp_path):
    theirs = timm_network('eva02_clip', depth=4)
    torch.save(theirs.state_dict(), tmp_path / 'timm.pth')
    options = ours_of('eva02_clip', arch=dict(ours_of('eva02_clip')['arch'], depth=4))
    ours = DenseViT(**options, out_indices=(0, 1, 3)).eval()
    load_backbone(ours, tmp_path / 'timm.pth')
    theirs.set_input_size((40, 64))
    images = torch.randn(2, 3, 40, 64)
    wanted = theirs.forward_intermediates(images, indices=[0, 1, 3], intermediates_only=True)
    assert_maps_equal(ours(images), wanted, 1e-5)


@pytest.mark.parametrize('recompute', [False, True])
def test_windows__with_rotary_positions_are_blocks_of_smaller_images(recompute):
    """EVA-02's rotations depend on the difference of places, so a window is like any other of its size."""
    arch = dict(width=48, depth=1, num_heads=4)
    options = dict(arch=arch, img_size=48, patch_size=8, rope='eva02', position='none', out_indices=(0,))
    windowed = dense(**options, window_size=3, global_blocks=(), activation_checkpointing=recompute).train()
    images = torch.randn(1, 3, 48, 48, requires_grad=True)
    [found] = windowed(images)
    tokens, grid, places = windowed.embed_plane(images)
    block = windowed.layers[0]
    for top, left in ((0, 0), (0, 3), (3, 0), (3, 3)):
        rows = torch.tensor([(top + row) * 6 + left + column for row in range(3) for column in range(3)])
        wanted = block(tokens[:, rows], (3, 3), None, None, places[:, rows])
        torch.testing.assert_close(
            found[:, :, top : top + 3, left : left + 3].flatten(2).mT, wanted, rtol=1e-4, atol=1e-5
        )
    found.sum().backward()
    assert images.grad.abs().sum() > 0
