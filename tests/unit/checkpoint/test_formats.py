"""Foreign state dicts are detected by their names, converted to ours, loaded, and give the same output."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from helpers.checkpoint_networks import TINY, scattered, tiny
from torch import nn

from mkd_plugin.checkpoint import load_backbone
from mkd_plugin.checkpoint.formats import FORMATS, find_network, find_networks
from mkd_plugin.checkpoint.infer_arch import infer_options
from mkd_plugin.checkpoint.load import convert_weights
from mkd_plugin.models.heads import TransformerDecoder
from mkd_plugin.models.students import ClassifierViT, MaskTokenViT
from mkd_plugin.models.vit import VisionTransformer

SIZES = dict(patch_size=8, embed_dim=48, depth=2, num_heads=4, num_classes=0)
SQUARE, OTHER = 32, (32, 48)


def timm_network(name: str, size) -> nn.Module:
    """Build a tiny network of one of timm's classes."""
    timm = pytest.importorskip('timm')
    quick = partial(
        timm.models.VisionTransformer,
        pre_norm=True,
        act_layer=timm.layers.QuickGELU,
        norm_layer=partial(nn.LayerNorm, eps=1e-5),
    )
    beit = partial(timm.models.beit.Beit, init_values=0.1, use_abs_pos_emb=False, global_pool='token')
    classes = {
        'vit': timm.models.VisionTransformer,
        'deit distilled': timm.models.VisionTransformerDistilled,
        'dinov2 with registers': partial(
            timm.models.VisionTransformer, reg_tokens=4, no_embed_class=True, init_values=1.0
        ),
        'dinov2': partial(timm.models.VisionTransformer, init_values=1.0),
        'clip': quick,
        'beit, shared': partial(beit, use_shared_rel_pos_bias=True),
        'beit, per block': partial(beit, use_rel_pos_bias=True),
        'eva': partial(timm.models.beit.Beit, global_pool='token'),
    }
    return scattered(classes[name](img_size=size, **SIZES))


TIMM = {
    'vit': 'timm',
    'deit distilled': 'timm',
    'dinov2 with registers': 'timm',
    'dinov2': 'timm',
    'clip': 'timm',
    'beit, shared': 'beit',
    'beit, per block': 'beit',
    'eva': 'beit',
}


def largest_error(found, wanted):
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize('size', [SQUARE, OTHER], ids=['square', 'other'])
@pytest.mark.parametrize('name', TIMM)
def test_load_backbone__timm_computes_the_same(tmp_path, name, size):
    theirs = timm_network(name, size)
    torch.save(theirs.state_dict(), tmp_path / 'file.pth')
    found, converted = convert_weights(theirs.state_dict(), 'file')
    assert (found.format.name, found.prefix) == (TIMM[name], '')
    ours = VisionTransformer(**infer_options(converted.tensors, dict(num_heads=4, img_size=size))).eval()
    report = load_backbone(ours, tmp_path / 'file.pth')
    assert (report.missing, report.dropped, report.unexpected) == ([], [], [])
    images = torch.randn(2, 3, *ours.image_hw)
    with torch.no_grad():
        wanted = theirs.forward_features(images)
        assert largest_error(ours(images).tokens('output'), wanted) < 2e-6


@pytest.mark.parametrize('size', [16, 48, (48, 32), (16, 48)], ids=str)
@pytest.mark.parametrize('name', ['vit', 'deit distilled', 'dinov2 with registers'])
def test_load_backbone__positions_resized_as_timm_resizes_them(tmp_path, name, size):
    timm = pytest.importorskip('timm')
    theirs = timm_network(name, SQUARE)
    torch.save(theirs.state_dict(), tmp_path / 'file.pth')
    _, converted = convert_weights(theirs.state_dict(), 'file')
    ours = VisionTransformer(**infer_options(converted.tensors, dict(num_heads=4, img_size=size)))
    assert load_backbone(ours, tmp_path / 'file.pth').resized == ['pos_embed']
    prefix = 0 if 'registers' in name else ours.num_placed
    grid = [side // 8 for side in ours.image_hw]
    wanted = timm.layers.resample_abs_pos_embed(theirs.pos_embed, grid, num_prefix_tokens=prefix)
    assert torch.equal(ours.pos_embed[:, ours.num_placed - prefix :], wanted)


def test_load_backbone__positions_of_a_grid_that_is_no_square(tmp_path):
    """3 × 12 and 6 × 6 are the same number of patches, so the old grid must be given."""
    timm = pytest.importorskip('timm')
    theirs = timm_network('vit', (24, 96))
    torch.save(theirs.state_dict(), tmp_path / 'file.pth')
    ours = VisionTransformer(**{**TINY, 'img_size': 48})
    assert load_backbone(ours, tmp_path / 'file.pth', grid=(3, 12)).resized == ['pos_embed']
    wanted = timm.layers.resample_abs_pos_embed(theirs.pos_embed, [6, 6], [3, 12])
    assert torch.equal(ours.pos_embed, wanted) and not torch.equal(ours.pos_embed, theirs.pos_embed)
    with pytest.raises(ValueError, match=r'grid=\(3, 4\): pos_embed has 36 entries in the file, and this grid has 12'):
        load_backbone(ours, tmp_path / 'file.pth', grid=(3, 4))
    same = VisionTransformer(**{**TINY, 'img_size': (24, 96)})
    with pytest.raises(ValueError, match='and the file does not say for which grid'):
        load_backbone(same, tmp_path / 'file.pth')
    assert load_backbone(same, tmp_path / 'file.pth', grid=(3, 12)).resized == []


@pytest.mark.parametrize('size', [48, 16, (32, 48)], ids=str)
@pytest.mark.parametrize('kind', ['shared', 'per_block'])
def test_load_backbone__relative_tables_resized_as_timm_resizes_them(tmp_path, kind, size):
    timm = pytest.importorskip('timm')
    theirs = timm_network('beit, shared' if kind == 'shared' else 'beit, per block', SQUARE)
    torch.save(theirs.state_dict(), tmp_path / 'file.pth')
    options = {**TINY, 'position': 'none', 'relative_position': kind, 'layer_scale': 0.1, 'img_size': size}
    ours = VisionTransformer(**options)
    report = load_backbone(ours, tmp_path / 'file.pth')
    grid = tuple(side // 8 for side in ours.image_hw)
    table = (theirs.rel_pos_bias if kind == 'shared' else theirs.blocks[1].attn).relative_position_bias_table
    own = (ours if kind == 'shared' else ours.layers[1].attn).rel_pos_bias.relative_position_bias_table
    assert torch.equal(own, timm.layers.resize_rel_pos_bias_table(table, grid, tuple(own.shape)))
    assert len(report.resized) == (1 if kind == 'shared' else 2)


def test_load_backbone__shared_relative_table_for_every_block(tmp_path):
    theirs = timm_network('beit, shared', SQUARE)
    torch.save(theirs.state_dict(), tmp_path / 'file.pth')
    options = {**TINY, 'position': 'none', 'layer_scale': 0.1}
    ours = VisionTransformer(relative_position='per_block', **options).eval()
    assert len(load_backbone(ours, tmp_path / 'file.pth').resized) == 2
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert largest_error(ours(images).tokens('output'), theirs.forward_features(images)) < 2e-6
    torch.save(timm_network('beit, per block', SQUARE).state_dict(), tmp_path / 'blocks.pth')
    with pytest.raises(ValueError, match='absent: rel_pos_bias.relative_position_bias_table'):
        load_backbone(VisionTransformer(relative_position='shared', **options), tmp_path / 'blocks.pth')


def reference_dicts() -> dict[str, tuple[dict[str, torch.Tensor], VisionTransformer]]:
    """State dicts with the names of reference repositories, made from timm's."""
    plain = timm_network('vit', SQUARE).state_dict()
    scaled = timm_network('dinov2', SQUARE).state_dict()
    shared = timm_network('beit, shared', SQUARE).state_dict()
    head = {'head.weight': torch.randn(10, 48), 'head.bias': torch.randn(10)}
    decoder = {
        f'decoder_{name}': torch.randn(3, 3) for name in ('embed.weight', 'embed.bias', 'norm.weight', 'norm.bias')
    }
    decoder |= {'mask_token': torch.randn(1, 1, 3), 'decoder_pos_embed': torch.randn(1, 17, 3)}
    moco = {f'module.{place}_encoder.{name}': value for place in ('base', 'momentum') for name, value in plain.items()}
    dino = {
        f'{place}backbone.{name}': value for place in ('student.module.', 'teacher.') for name, value in plain.items()
    }
    visual = {f'module.visual.{name}': value for name, value in plain.items()}
    return {
        'mae': {**plain, **decoder, 'decoder_pred.weight': torch.randn(192, 3), 'decoder_pred.bias': torch.randn(192)},
        'dbot': {**plain, **decoder, 'decoder_predp.weight': torch.randn(48, 3), 'decoder_predp.bias': torch.randn(48)},
        'dmae': {
            **plain, **decoder, 'decoder_pred.weight': torch.randn(192, 3),
            'aligned_feature_projection_heads.0.fc1.weight': torch.randn(3, 3),
        },
        'timm, with a head': {**plain, **head, 'head_dist.weight': torch.ones(1), 'pre_logits.fc.weight': torch.ones(1)},
        'moco': {**moco, 'module.predictor.0.weight': torch.ones(2), 'module.base_encoder.head.1.running_mean': torch.ones(2)},
        'dino': dino,
        'slip': {
            **visual, 'module.image_projection': torch.randn(48, 24), 'module.logit_scale': torch.ones(()),
            'module.transformer.resblocks.0.ln_1.weight': torch.ones(3), 'module.image_mlp.layer1.weight': torch.ones(3),
        },
        'dinov2': {**scaled, 'mask_token': torch.randn(1, 48), 'register_tokens': torch.randn(1, 4, 48)},
        'beit': {
            **shared, 'mask_token': torch.randn(1, 1, 48), 'lm_head.weight': torch.ones(2), 'lm_head.bias': torch.ones(2),
            'rel_pos_bias.relative_position_index': torch.ones(2), 'cls_pt_layers.0.norm1.weight': torch.ones(2),
        },
    }  # fmt: skip


REFERENCES = {
    'mae': ('mae', ''),
    'dbot': ('dbot', ''),
    'dmae': ('dmae', ''),
    'timm, with a head': ('timm', ''),
    'moco': ('timm', 'module.base_encoder.'),
    'dino': ('timm', 'teacher.backbone.'),
    'slip': ('slip', 'module.'),
    'dinov2': ('dinov2', ''),
    'beit': ('beit', ''),
}


@pytest.mark.parametrize('name', REFERENCES)
@pytest.mark.parametrize('wrapper', ['', '_orig_mod.'])
def test_load_backbone__reference_repositories(tmp_path, name, wrapper):
    """Tensors outside the network are reported as dropped; none are missing or unexpected."""
    weights = reference_dicts()[name]
    torch.save(dict(model={wrapper + key: value for key, value in weights.items()}, epoch=3), tmp_path / 'file.pth')
    found, converted = convert_weights(weights, 'file')
    assert (found.format.name, found.prefix) == REFERENCES[name]
    options = infer_options(converted.tensors, dict(num_heads=4))
    report = load_backbone(VisionTransformer(**options), tmp_path / 'file.pth')
    assert (report.missing, report.unexpected) == ([], [])
    inside = len(converted.tensors) - len([key for key in report.dropped if key in converted.tensors])
    assert len(report.matched) == inside


def test_find_network__of_several_one_can_be_chosen(tmp_path):
    weights = reference_dicts()['moco']
    assert {entry.prefix for entry in find_networks(weights)} == {'module.base_encoder.', 'module.momentum_encoder.'}
    assert find_network(weights, 'file', 'module.momentum_encoder.').prefix == 'module.momentum_encoder.'
    two = {key.replace('base', 'first').replace('momentum', 'second'): value for key, value in weights.items()}
    with pytest.raises(ValueError, match="several networks. Choose one with prefix=…: 'module.first_encoder.'"):
        find_network(two, 'file')


def test_find_network__unknown_format_lists_the_known_and_ten_names():
    names = {f'stages.{i}.conv.weight': torch.ones(1) for i in range(12)}
    with pytest.raises(ValueError, match='holds no network of a known format') as error:
        find_network(names, 'file.pth')
    text = str(error.value)
    assert all(entry.title in text for entry in FORMATS.values())
    assert "'stages.9.conv.weight']" in text and 'stages.10' not in text and '12 names' in text


@pytest.mark.parametrize('name', ['mae', 'dbot', 'dmae'])
def test_to_ours__decoder_has_the_names_of_our_head(name):
    converted = FORMATS[name].to_ours(reference_dicts()[name])
    found = {key.removeprefix('decoder.') for key in converted.tensors if key.startswith('decoder.')}
    head = TransformerDecoder(in_width=48, out_width=48, grid=(4, 4), depth=1, width=16, num_heads=2)
    assert found <= set(head.state_dict())
    ours = [rule.ours.removeprefix('decoder.') for rule in FORMATS[name].rules if rule.ours.startswith('decoder.')]
    assert {pattern.format(i=0, p=kind) for pattern in ours for kind in ('weight', 'bias')} == set(head.state_dict())


def test_load_backbone__slip_projects_after_the_norm(tmp_path):
    weights = reference_dicts()['slip']
    torch.save(dict(state_dict=weights), tmp_path / 'file.pth')
    ours = VisionTransformer(**TINY, projection=24).eval()
    load_backbone(ours, tmp_path / 'file.pth')
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        features = ours(images, taps=('output', 'projected'))
        wanted = features.tokens('output') @ weights['module.image_projection']
    torch.testing.assert_close(features.tokens('projected'), wanted, rtol=1e-5, atol=1e-5)


def test_load_backbone__timms_clip_has_its_projection_as_a_head(tmp_path):
    theirs = timm_network('clip', SQUARE)
    theirs.reset_classifier(24)
    nn.init.zeros_(theirs.head.bias)
    torch.save(theirs.state_dict(), tmp_path / 'file.pth')
    options = dict(pre_norm=True, norm_eps=1e-5, activation='quick_gelu')
    ours = VisionTransformer(**TINY, **options, projection=24).eval()
    load_backbone(ours, tmp_path / 'file.pth')
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert largest_error(ours(images, taps=('projected',)).tokens('projected')[:, 0], theirs(images)) < 2e-6
    nn.init.ones_(theirs.head.bias)  # a classifier
    torch.save(theirs.state_dict(), tmp_path / 'file.pth')
    report = load_backbone(VisionTransformer(**TINY, **options), tmp_path / 'file.pth')
    assert report.dropped == ['head.weight', 'head.bias']


def test_load_backbone__mask_token_goes_to_who_has_one(tmp_path):
    weights = reference_dicts()['beit']
    torch.save(weights, tmp_path / 'file.pth')
    options = {**TINY, 'position': 'none', 'relative_position': 'shared', 'layer_scale': 0.1}
    student = MaskTokenViT(**options)
    assert load_backbone(student, tmp_path / 'file.pth').missing == []
    assert torch.equal(student.mask_token, weights['mask_token'])


def test_load_backbone__norm_after_pooling_is_the_classifiers(tmp_path):
    """Fine-tuned with mean pooling (MAE, BEiT): `fc_norm` instead of `norm`."""
    weights = timm_network('vit', SQUARE).state_dict()
    weights |= {f'fc_norm.{kind}': weights.pop(f'norm.{kind}') for kind in ('weight', 'bias')}
    torch.save(weights | {'head.weight': torch.ones(3, 48)}, tmp_path / 'file.pth')
    classifier = ClassifierViT(**TINY)
    report = load_backbone(classifier, tmp_path / 'file.pth')
    assert (report.missing, report.dropped) == ([], ['head.weight'])
    assert torch.equal(classifier.ln2.weight, weights['fc_norm.weight'])
    with pytest.raises(ValueError, match="read the tap 'block:-1', with allow_missing="):
        load_backbone(VisionTransformer(**TINY), tmp_path / 'file.pth')
    missing = load_backbone(VisionTransformer(**TINY), tmp_path / 'file.pth', allow_missing=('ln1.weight', 'ln1.bias'))
    assert missing.missing == ['ln1.weight', 'ln1.bias']


@pytest.mark.parametrize(
    ('features', 'message'),
    [
        ({'layer scale'}, 'layer scale, which this one lacks.* Build it with layer_scale=…'),
        ({'register tokens'}, 'register tokens, which this one lacks.* num_registers=…'),
        ({'a norm before the first block'}, 'a norm before the first block, which this one lacks.* pre_norm=True'),
        (
            {'a relative position bias in every block'},
            "relative position bias in every .* relative_position='per_block'",
        ),
    ],
    ids=lambda value: ', '.join(value) if isinstance(value, set) else '',
)
def test_load_backbone__part_of_the_file_that_the_network_lacks(tmp_path, features, message):
    torch.save(tiny(frozenset(features)).state_dict(), tmp_path / 'file.pth')
    with pytest.raises(ValueError, match=message):
        load_backbone(VisionTransformer(**TINY), tmp_path / 'file.pth')


def test_load_backbone__positions_that_the_network_lacks(tmp_path):
    torch.save(tiny().state_dict(), tmp_path / 'file.pth')
    with pytest.raises(ValueError, match="absolute positions, which this one lacks.* position='learned'"):
        load_backbone(VisionTransformer(**{**TINY, 'position': 'none'}), tmp_path / 'file.pth')


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_load_backbone__converted_numbers_are_said(tmp_path, dtype):
    source = tiny()
    torch.save({name: value.to(dtype) for name, value in source.state_dict().items()}, tmp_path / 'file.pth')
    network = VisionTransformer(**TINY)
    report = load_backbone(network, tmp_path / 'file.pth')
    same = dtype == torch.float32
    assert report.converted == ([] if same else report.matched)
    assert report.dtypes == ([] if same else [f'{str(dtype).removeprefix("torch.")} → float32'])
    assert torch.equal(network.ln1.weight, source.ln1.weight.to(dtype).float())
    assert same or report.dtypes[0] in str(report)


PROJECTED = ('timm', 'clip', 'hf_clip')


@pytest.mark.parametrize('entry', FORMATS.values(), ids=FORMATS)
def test_to_theirs__every_format_comes_back(entry):
    """Ours → theirs → ours."""
    clip = 'clip' in entry.name
    own = tiny(
        frozenset({'a norm before the first block', 'a projection'} if entry.name in PROJECTED else ())
    ).state_dict()
    if clip and entry.name not in PROJECTED:
        own = tiny(frozenset({'a norm before the first block'})).state_dict()
    if entry.name in ('beit', 'mmpretrain_beit', 'hf_beit', 'dinov3', 'timm_dinov3', 'eva02'):  # keys without bias
        for name in (name for name in own if name.endswith('qkv.bias')):
            own[name][48:96] = 0
    theirs, left = entry.to_theirs(own)
    assert not left
    back = entry.to_ours(theirs)
    assert not back.unknown and back.tensors.keys() == own.keys()
    assert all(torch.equal(back.tensors[name], own[name]) for name in own)


def test_to_ours__half_of_a_triple_is_not_guessed():
    entry = FORMATS['hf_vit']
    theirs, _ = entry.to_theirs(tiny().state_dict())
    name = 'encoder.layer.0.attention.attention.value.weight'
    del theirs[name]
    converted = entry.to_ours(theirs)
    assert 'layers.0.attn.qkv.weight' not in converted.tensors
    assert sorted(converted.unknown) == [name.replace('value', 'key'), name.replace('value', 'query')]


def test_mkd__has_a_rule_for_every_tensor_of_the_network():
    every = frozenset(
        {'layer scale', 'a norm before the first block', 'a projection', 'a distillation token', 'register tokens'}
    )
    state = tiny(every).state_dict()
    converted = FORMATS['mkd'].to_ours(state)
    assert converted.tensors.keys() == state.keys() and not converted.unknown
