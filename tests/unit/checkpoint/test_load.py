"""Loading a ViT covers the whole network, or the error lists what is missing."""

from __future__ import annotations

import pytest
import torch
from helpers.networks import ARCH, scatter_weights

from mkd_plugin.checkpoint.load import LoadReport, load_backbone, load_module
from mkd_plugin.checkpoint.resize import resize_positions
from mkd_plugin.models.students import ClassifierViT, MaskTokenViT, VisibleViT
from mkd_plugin.models.vit import VisionTransformer
from mkd_plugin.registry import build

TENSORS = 4 + 3 * 12 + 2  # patch embedding, cls and positions; blocks; final norm


@pytest.fixture
def source(vit_options) -> VisionTransformer:
    return scatter_weights(VisibleViT(position='learned', **vit_options)).eval()


@pytest.fixture
def save(tmp_path):
    """Save an object and return the path."""

    def save_as(checkpoint, name='file.pth'):
        torch.save(checkpoint, tmp_path / name)
        return tmp_path / name

    return save_as


def prefixed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


def same(network, source):
    own = network.state_dict()
    return all(torch.equal(own[name], value) for name, value in source.state_dict().items() if name in own)


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
@pytest.mark.parametrize('key', [None, 'state_dict', 'model'])
@pytest.mark.parametrize('position', ['sincos', 'learned'])
def test_load_backbone__finds_the_network_by_itself(source, save, vit_options, prefix, key, position):
    state = prefixed(source.state_dict(), prefix)
    network = VisibleViT(position=position, **vit_options)
    report = load_backbone(network, save(state if key is None else {key: state}))
    assert same(network, source)
    assert sorted(report.matched) == sorted(source.state_dict())
    assert (len(report.matched), report.resized, report.missing, report.unexpected) == (TENSORS, [], [], [])


def test_load_backbone__report_counts_what_is_not_of_the_network(source, save, vit_options):
    state = {
        **prefixed(source.state_dict(), 'backbone.'),
        'backbone.extra': torch.ones(1),
        'head.fc.weight': torch.ones(1),
    }
    report = load_backbone(VisibleViT(**vit_options), save(state))
    assert (report.dropped, report.unexpected) == (['head.fc.weight'], ['extra'])
    lines = str(report).splitlines()
    assert lines[0].endswith("file.pth (mkd_plugin or mmpretrain VisionTransformer, under 'backbone.')")
    rows = {line.split(':')[0].strip(): line.split() for line in lines[2:]}
    assert rows['matched'][-1] == '42' and rows['missing'][-1] == '0'
    assert rows['dropped'][-2:] == ['1', 'head.fc.weight'] and rows['unexpected'][-2:] == ['1', 'extra']


def test_load_backbone__logs_one_line(source, save, vit_options, monkeypatch):
    said = []
    monkeypatch.setattr('mkd_plugin.checkpoint.load.print_log', lambda text, **_: said.append(text))
    path = save(
        {**prefixed(source.state_dict(), 'backbone.'), 'backbone.extra': torch.ones(1), 'head.b': torch.ones(1)}
    )
    load_backbone(ClassifierViT(**{**vit_options, 'img_size': 24}), path)
    assert said == [
        f"loaded {path} (mkd_plugin or mmpretrain VisionTransformer, under 'backbone.') into ClassifierViT: matched "
        f'{TENSORS - 3}, missing 2 (ln2.weight, ln2.bias), unexpected 3 (extra, ln1.weight, ln1.bias), resized 1 '
        '(pos_embed), dropped 1 (head.b)'
    ]


def test_load_module__logs_one_line(save, monkeypatch):
    said = []
    monkeypatch.setattr('mkd_plugin.checkpoint.load.print_log', lambda text, **_: said.append(text))
    path = save({**torch.nn.Linear(2, 3).state_dict(), 'head': torch.ones(1)})
    load_module(torch.nn.Linear(2, 3), str(path))
    assert said == [f'loaded {path} into Linear: matched 2, missing 0, unexpected 1 (head), resized 0']


def test_load_report__shortens_long_lists():
    report = LoadReport('file', missing=[f'key{i}' for i in range(8)])
    assert '8   key0, key1, key2, key3, key4, key5 and 2 more' in str(report)


def test_load_report__markup_in_a_name_is_text():
    assert '[red]x' in str(LoadReport('file', unexpected=['[red]x']))


def test_load_backbone__stage_teacher_under_its_prefix(build_distiller, save, vit_options):
    model = build_distiller().float()
    path = save(dict(state_dict=model.state_dict()))
    teacher, student = VisibleViT(**vit_options), VisibleViT(**vit_options)
    load_backbone(teacher, path, prefix='teachers.boot.network.')
    load_backbone(student, path)
    assert same(student, model.backbone)
    assert same(teacher, model.teachers['boot'].network)
    assert not same(teacher, model.backbone)


def test_load_backbone__prefix_without_its_dot(source, save, vit_options):
    network = VisibleViT(**vit_options)
    load_backbone(network, save(prefixed(source.state_dict(), 'backbone.')), prefix='backbone')
    assert same(network, source)


def test_load_backbone__classifier_has_a_new_norm_of_its_own(source, save, vit_options):
    network = ClassifierViT(**vit_options)
    report = load_backbone(network, save(source.state_dict()))
    assert same(network, source)
    assert sorted(report.missing) == ['ln2.bias', 'ln2.weight']
    assert sorted(report.unexpected) == ['ln1.bias', 'ln1.weight']
    assert (network.ln2.weight == 1).all()


@pytest.mark.parametrize('allow', [True, False])
def test_load_backbone__allow_missing(source, save, vit_options, allow):
    network = MaskTokenViT(**vit_options)
    before = network.mask_token.clone()
    if allow:
        assert load_backbone(network, save(source.state_dict()), allow_missing=('mask_token',)).missing == [
            'mask_token'
        ]
        assert torch.equal(network.mask_token, before)
    else:
        with pytest.raises(ValueError, match='1 of 43 tensors are missing. absent: mask_token'):
            load_backbone(network, save(source.state_dict()))


@pytest.mark.parametrize(('side', 'position'), [(24, 'learned'), (24, 'sincos'), (8, 'learned')])
def test_load_backbone__resizes_positions_as_timm_does(source, save, vit_options, side, position):
    resample = pytest.importorskip('timm.layers').resample_abs_pos_embed
    network = VisibleViT(**{**vit_options, 'img_size': side, 'position': position})
    report = load_backbone(network, save(source.state_dict()))
    wanted = resample(source.pos_embed.detach(), [side // 4, side // 4], num_prefix_tokens=1)
    torch.testing.assert_close(network.pos_embed.detach(), wanted, rtol=1e-5, atol=1e-6)
    assert report.resized == ['pos_embed']
    assert len(report.matched) == TENSORS - 1


@pytest.mark.parametrize('num_prefix', [0, 1, 2])
def test_resize_positions__keeps_the_prefix_and_the_dtype(num_prefix):
    table = torch.randn(1, num_prefix + 6, 4, dtype=torch.float64)
    found = resize_positions(table, (2, 3), (4, 5), num_prefix)
    assert found.dtype == torch.float64
    assert torch.equal(found[:, :num_prefix], table[:, :num_prefix])
    for channel in range(4):  # a channel alone gives the same: nothing is mixed
        alone = resize_positions(table[..., channel : channel + 1], (2, 3), (4, 5), num_prefix)
        torch.testing.assert_close(found[..., channel : channel + 1], alone)
    assert resize_positions(table, (2, 3), (2, 3), num_prefix) is table


def test_resize_positions__a_ramp_stays_a_ramp():
    """Rows and columns are not exchanged: values that depend on the row only still do."""
    rows = torch.arange(4.0).repeat_interleave(6).view(1, 24, 1)
    found = resize_positions(rows, (4, 6), (8, 6), num_prefix=0).view(8, 6)
    torch.testing.assert_close(found, found[:, :1].expand(8, 6))
    assert (found[1:, 0] > found[:-1, 0]).all()


@pytest.mark.parametrize('kind', [VisibleViT, ClassifierViT])
def test_load_backbone__other_dtype_is_cast(source, save, vit_options, kind):
    network = kind(**vit_options).double()
    load_backbone(network, save({name: value.half() for name, value in source.state_dict().items()}))
    torch.testing.assert_close(network.cls_token, source.cls_token.half().double(), rtol=0, atol=0)


WRONG = {
    'width': (
        dict(arch=dict(ARCH, width=64)),
        r'width 32 in the file and 64 here; hidden width 128 in the file and 256 here',
    ),
    'patch': (
        dict(img_size=32, patch_size=8),
        r'another network than this one: patch 4 in the file and 8 here\. Check',
    ),
    'channels': (dict(in_channels=1), r'one: channels 3 in the file and 1 here\. Check'),
    'deeper': (dict(arch=dict(ARCH, depth=5)), r'one: blocks 3 in the file and 5 here\. Check'),
    'shallower': (dict(arch=dict(ARCH, depth=2)), r'one: blocks 3 in the file and 2 here\. Check'),
    'mlp': (dict(arch=dict(ARCH, mlp_ratio=2)), r'one: hidden width 128 in the file and 64 here\. Check'),
}


@pytest.mark.parametrize(('options', 'message'), WRONG.values(), ids=WRONG)
def test_load_backbone__network_of_another_size(source, save, vit_options, options, message):
    network = VisibleViT(**{**vit_options, **options})
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=message) as error:
        load_backbone(network, save(source.state_dict()))
    assert 'Check arch, patch_size and in_channels' in str(error.value)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())  # nothing was loaded


def test_load_backbone__file_of_another_number_of_heads(source, save, vit_options):
    meta = dict(
        mkd_plugin=dict(backbone=dict(arch=dict(ARCH, mlp_ratio=4.0), img_size=16, patch_size=4, in_channels=3))
    )
    network = VisibleViT(**{**vit_options, 'arch': dict(ARCH, num_heads=2)})
    with pytest.raises(ValueError, match='a network with 4 attention heads, and this one has 2'):
        load_backbone(network, save(dict(state_dict=source.state_dict(), meta=meta)))


def test_load_backbone__half_the_keys(source, save, vit_options):
    names = sorted(source.state_dict())[::2]
    with pytest.raises(ValueError, match=r"prefix ''\): 21 of 42 tensors are missing. absent: .* and 15 more"):
        load_backbone(VisibleViT(**vit_options), save({name: source.state_dict()[name] for name in names}))


def test_load_backbone__other_prefix_is_found(source, save, vit_options):
    network = VisibleViT(**vit_options)
    assert load_backbone(network, save(prefixed(source.state_dict(), 'encoder.'))).prefix == 'encoder.'
    assert same(network, source)


def test_load_backbone__wrong_prefix_lists_what_there_is(source, save, vit_options):
    with pytest.raises(ValueError, match=r"under the prefix 'teachers.boot.network.'.* first ten of .*'cls_token'"):
        load_backbone(VisibleViT(**vit_options), save(source.state_dict()), prefix='teachers.boot.network.')


def test_load_backbone__only_an_optimizer(source, save, vit_options):
    optimizer = torch.optim.AdamW(source.parameters())
    with pytest.raises(ValueError, match=r"holds no weights: its entries are \['optimizer'\]"):
        load_backbone(VisibleViT(**vit_options), save(dict(optimizer=optimizer.state_dict())))


def test_load_backbone__missing_file(tmp_path, vit_options):
    with pytest.raises(FileNotFoundError, match=r'There is no checkpoint .*missing\.pth'):
        load_backbone(VisibleViT(**vit_options), tmp_path / 'missing.pth')


def test_load_backbone__table_that_is_no_square(source, save, vit_options):
    """A distilled DeiT's table without its distillation token is rejected, not cut to size."""
    state = source.state_dict()
    state['pos_embed'] = torch.cat([state['pos_embed'][:, :1], state['pos_embed']], dim=1)
    with pytest.raises(ValueError, match=r'pos_embed has 17 entries, and the file does not say for which grid'):
        load_backbone(VisibleViT(**vit_options), save(state))


@pytest.mark.parametrize('kind', ['VisibleViT', 'MaskTokenViT', 'ClassifierViT'])
def test_init_cfg__pretrained_is_loaded(source, save, vit_options, kind):
    state = prefixed({**source.state_dict(), 'mask_token': torch.ones(1, 1, 32)}, 'backbone.')
    cfg = dict(type='Pretrained', checkpoint=str(save(dict(state_dict=state))), prefix='backbone.')
    network = build(dict(type=kind, init_cfg=cfg, **vit_options))
    assert not same(network, source)
    network.init_weights()
    assert same(network, source)
    assert network.is_init


def test_init_cfg__pretrained_is_strict(source, save, vit_options):
    """mmengine would only log a warning."""
    state = source.state_dict()
    del state['layers.1.attn.qkv.weight']
    network = VisibleViT(init_cfg=dict(type='Pretrained', checkpoint=str(save(state))), **vit_options)
    with pytest.raises(ValueError, match='1 of 42 tensors are missing. absent: layers.1.attn.qkv.weight'):
        network.init_weights()


def test_init_cfg__pretrained_in_a_list_is_strict(source, save, vit_options):
    state = source.state_dict()
    del state['layers.1.attn.qkv.weight']
    network = VisibleViT(init_cfg=[dict(type='Pretrained', checkpoint=str(save(state)))], **vit_options)
    with pytest.raises(ValueError, match='absent'):
        network.init_weights()


def test_init_cfg__other_kinds_are_mmengines(vit_options):
    network = VisibleViT(init_cfg=dict(type='Constant', layer='Linear', val=0.25), **vit_options)
    network.init_weights()
    assert (network.layers[0].attn.qkv.weight == 0.25).all()


def test_vit_teacher__loads_strictly(build_distiller, source, save, images):
    teacher = dict(type='ViTTeacher', arch=ARCH, patch_size=4, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3)
    path = save(prefixed(source.state_dict(), 'backbone.'))
    model = build_distiller(teachers=dict(boot=dict(teacher, checkpoint=str(path))))
    found = model.teachers['boot'](images, None, ('output',)).tokens('output')
    torch.testing.assert_close(found, source.double()(images).tokens('output'), rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="no network of a known format under the prefix 'teacher.'"):
        build_distiller(teachers=dict(boot=dict(teacher, checkpoint=str(path), prefix='teacher.')))


@pytest.mark.parametrize('meta', [None, 'a string', dict(mkd_plugin=3), dict(mkd_plugin=dict(version='0'))])
def test_load_backbone__meta_of_others_is_no_obstacle(tmp_path, source, vit_options, meta):
    weights = {**source.state_dict(), 'layers.norm.weight': torch.ones(3)}
    torch.save(dict(state_dict=weights, meta=meta), tmp_path / 'file.pth')
    report = load_backbone(VisibleViT(**vit_options), tmp_path / 'file.pth')
    assert report.unexpected == ['layers.norm.weight'] and not report.missing
