"""Backbones of timm, mmpretrain, mmdet and one's own as students, against the networks themselves."""

from __future__ import annotations

import copy

import pytest
import torch
from mmpretrain.structures import DataSample
from torch import nn
from torch.nn import functional as F

from mkd_plugin.models.backbones import BackboneStudent
from mkd_plugin.models.precision import set_precision
from mkd_plugin.models.protocols import Progress
from mkd_plugin.models.students import PlainViT
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import TokenMask


class Maps(nn.Module):
    """A network of one's own that gives two maps by name."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.deep = nn.Conv2d(width, 2 * width, 3, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        return {'stem': x, 'deep': self.deep(x)}


SWIN = dict(depths=(1, 1), num_heads=(1, 2), window_size=2)
TINY = {
    'timm-resnet': dict(type='timm.resnet18', channels=(4, 8, 8, 8), layers=(1, 1, 1, 1)),
    'timm-convnext': dict(type='timm.convnext_tiny', depths=(1, 1, 1, 1), dims=(8, 8, 8, 16)),
    'timm-swin': dict(type='timm.swin_tiny_patch4_window7_224', embed_dim=8, **SWIN),
    'mmpretrain-resnet': dict(type='mmpretrain.ResNet', depth=18, stem_channels=4, base_channels=4),
    'mmpretrain-convnext': dict(
        type='mmpretrain.ConvNeXt', arch=dict(depths=[1, 1, 1, 1], channels=[8, 8, 8, 16]), gap_before_final_norm=False
    ),
    'mmpretrain-swin': dict(
        type='mmpretrain.SwinTransformer',
        arch=dict(embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 2]),
        window_size=2,
    ),
    'yolo': dict(type='mmdet.CSPDarknet', deepen_factor=0.33, widen_factor=0.125),
    'own': dict(type=Maps),
}
UNITS = {
    'hiera': dict(
        type='timm.hiera_tiny_224',
        embed_dim=8,
        num_heads=1,
        stages=(1, 1, 1, 1),
        mask_unit_attn=(True, True, True, True),
    ),
    'hivit': dict(type='mmpretrain.MAEHiViT', arch='tiny', img_size=64, ape=True, rpe=False),
}


def student_of(kind: str, **options) -> BackboneStudent:
    return BackboneStudent(network={**TINY, **UNITS}[kind], **{'img_size': 64, **options})


def half_hidden(student: BackboneStudent, batch: int = 2) -> TokenMask:
    count = student.grid[0] * student.grid[1]
    return TokenMask.from_hidden((torch.arange(count) % 2 == 1).expand(batch, -1), count - count // 2)


def distiller(network: dict, masking: dict | None = None, teacher: dict | None = None, **options):
    teacher = teacher or dict(type='ViTTeacher', arch=dict(width=32, depth=1, num_heads=2), patch_size=16, seed=0)
    head = dict(type='LinearHead')
    objective = dict(
        teacher='t', tap='output', student='output', head=head, loss=dict(type='SmoothL1Loss'), region='all+cls'
    )
    return MODELS.build(
        dict(
            type='MaskedDistiller',
            backbone=dict(type='BackboneStudent', network=network, **{'img_size': 64, **options}),
            masking=masking or dict(type='NoMasking'),
            teachers=dict(t=teacher),
            objectives=dict(feature=objective),
        )
    )


@pytest.mark.parametrize('kind', TINY)
def test_backbone_student__tokens_are_the_map_resampled_after_its_mean(kind):
    student, images = student_of(kind).eval(), torch.randn(2, 3, 64, 64)
    raw = student._maps(images, ['output'])['output']
    if kind == 'own':
        torch.testing.assert_close(raw, student.network(images)['deep'])
    elif not kind.startswith('timm'):
        torch.testing.assert_close(raw, student.network(images)[-1])
    else:
        torch.testing.assert_close(raw, student.network.forward_intermediates(images)[1][-1])
    assert raw.shape[-2:] != (4, 4)
    found = student(images).tokens('output')
    wanted = F.interpolate(raw, (4, 4), mode='bilinear', antialias=True).flatten(2).transpose(1, 2)
    torch.testing.assert_close(found[:, 1:], wanted)
    torch.testing.assert_close(found[:, 0], raw.mean((2, 3)))
    assert student.tap_spec('output').channels == raw.shape[1]


def test_backbone_student__a_finer_map_is_averaged_and_an_image_need_not_be_square():
    student = student_of('own', img_size=(32, 64), patch_size=8, taps=['stage:0', 'output'])
    images = torch.randn(1, 3, 32, 64)
    raw = student.network(images)
    for tap, name in (('stage:0', 'stem'), ('output', 'deep')):
        wanted = F.interpolate(raw[name], (4, 8), mode='bilinear', antialias=True).flatten(2).transpose(1, 2)
        torch.testing.assert_close(student(images, taps=[tap]).tokens(tap)[:, 1:], wanted)


def test_backbone_student__a_linear_layer_before_and_after_resampling_is_the_same():
    student, layer, images = student_of('timm-resnet').eval(), nn.Linear(8, 5), torch.randn(2, 3, 64, 64)
    raw = student._maps(images, ['output'])['output']
    projected = layer(raw.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    wanted = F.interpolate(projected, (4, 4), mode='bilinear', antialias=True).flatten(2).transpose(1, 2)
    torch.testing.assert_close(layer(student(images).tokens('output')[:, 1:]), wanted)


@pytest.mark.parametrize('kind', TINY)
def test_distiller__every_trained_parameter_has_a_gradient(kind):
    model = distiller(TINY[kind])
    model.init_weights()
    model.train().loss(torch.randn(4, 3, 64, 64))['loss_feature'].backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert all('norm' in name for name in frozen) and len(frozen) in (0, 2), frozen


def test_backbone_student__norms_of_stages_that_nothing_reads_are_frozen():
    network = {**TINY['mmpretrain-swin'], 'out_indices': (0, 1, 2, 3)}
    student = BackboneStudent(network=network, img_size=64)
    frozen = {name for name, p in student.named_parameters() if not p.requires_grad}
    assert frozen == {f'network.norm{i}.{part}' for i in range(3) for part in ('weight', 'bias')}
    both = BackboneStudent(network=network, img_size=64, taps=['stage:2', 'output'])
    assert sum(not p.requires_grad for p in both.parameters()) == 4


MASKED = {  # module after which a token replaces hidden patches; the patches that it cannot mix
    'timm-convnext': 'stem',
    'timm-swin': 'patch_embed',
    'mmpretrain-convnext': 'downsample_layers.0',
    'mmpretrain-swin': 'patch_embed',
    'own': 'stem',
}


@pytest.mark.parametrize('kind, place', [*MASKED.items(), *((kind, 'pixels') for kind in TINY)])
def test_backbone_student__does_not_see_hidden_pixels(kind, place):
    student, images = student_of(kind, mask_at=place).eval(), torch.randn(2, 3, 64, 64)
    mask = half_hidden(student)
    hidden_BHW = mask.hidden_BL.view(2, 4, 4).repeat_interleave(16, 1).repeat_interleave(16, 2).unsqueeze(1)
    found = student(images, mask).tokens('output')
    torch.testing.assert_close(student(images.masked_fill(hidden_BHW, torch.nan), mask).tokens('output'), found)
    assert not torch.allclose(found, student(images).tokens('output'))
    shown = TokenMask.from_hidden(torch.zeros_like(mask.hidden_BL), 16)
    torch.testing.assert_close(student(images, shown).tokens('output'), student(images).tokens('output'))
    if place == 'pixels':
        wanted = student(images.masked_fill(hidden_BHW, 0)).tokens('output')
        torch.testing.assert_close(found, wanted)
    else:
        found.square().sum().backward()
        assert student.mask_token.grad.abs().sum() > 0
        assert not list(student.network.get_submodule(place)._forward_hooks)


@pytest.mark.parametrize('kind, place', [('own', 'stem'), ('timm-resnet', 'pixels')])
def test_backbone_student__visible_only_returns_the_visible_ones_of_all_tokens(kind, place):
    visible = student_of(kind, mask_at=place, visible_only=True).eval()
    every = student_of(kind, mask_at=place).eval()
    every.load_state_dict(visible.state_dict())
    images, hidden_BL = torch.randn(2, 3, 64, 64), torch.ones(2, 16, dtype=torch.bool)
    hidden_BL[0, [1, 2, 7, 12, 15]] = hidden_BL[1, [0, 3, 4, 9, 10]] = False
    mask = TokenMask.from_hidden(hidden_BL, 5)
    mask = TokenMask(hidden_BL, mask.ids_keep_BV.flip(1), mask.ids_hide_BM, mask.ids_restore_BL)  # in their order
    found, full = visible(images, mask), every(images, mask).tokens('output')
    wanted = [tokens[[0, *(ids + 1).tolist()]] for tokens, ids in zip(full, mask.ids_keep_BV, strict=True)]
    torch.testing.assert_close(found.tokens('output'), torch.stack(wanted))
    assert found.mask is mask and every(images, mask).mask is None
    torch.testing.assert_close(visible(images).tokens('output'), every(images).tokens('output'))


@pytest.mark.parametrize('kind, size, patch', [('hiera', 224, 32), ('hivit', 64, 16)])
def test_backbone_student__leaves_hidden_units_out(kind, size, patch):
    student = student_of(kind, img_size=size, patch_size=patch, mask_at='units').eval()
    images, mask = torch.randn(2, 3, size, size), half_hidden(student)
    features = student(images, mask)
    assert features.tokens('output').shape[1] == 1 + mask.ids_keep_BV.shape[1] and features.mask is mask
    shown = TokenMask.from_hidden(torch.zeros_like(mask.hidden_BL), student.grid[0] * student.grid[1])
    whole = student(images).tokens('output')
    torch.testing.assert_close(student(images, shown).tokens('output'), whole, rtol=1e-4, atol=1e-5)
    hidden_BHW = (
        mask.hidden_BL.view(2, *student.grid).repeat_interleave(patch, 1).repeat_interleave(patch, 2).unsqueeze(1)
    )
    blank = student(images.masked_fill(hidden_BHW, 0), mask)
    torch.testing.assert_close(blank.tokens('output'), features.tokens('output'))
    if kind == 'hiera':  # units do not attend to each other here: the one that changes is the one in its place
        row, column = divmod(mask.ids_keep_BV[0, 5].item(), student.grid[1])
        images[0, :, row * patch + 12 : row * patch + 20, column * patch + 12 : column * patch + 20] += 1
        change = (student(images, mask).tokens('output') - features.tokens('output'))[0, 1:].abs().sum(-1)
        assert change[5] > 0 and change.count_nonzero() == 1


REFUSED = [
    (dict(network=dict(type='timm.resnet17')), "has no model 'resnet17'"),
    (dict(network=dict(type='timm.resnet18', pretrained=True)), 'start from a local file with init_cfg'),
    (dict(network=dict(type='timm.resnet18', depht=3)), r"timm.create_model\('resnet18'\) rejects the options"),
    (dict(network=dict(type='mmpretrain.ResNet', depth=18, depht=3)), 'mmpretrain.ResNet: .*unexpected keyword'),
    (dict(network=TINY['own'], img_size=(64,)), r'img_size=\(64,\): give the side of a square image'),
    (dict(network=TINY['own'], taps=['block:3']), "there is no tap 'block:3'"),
    (dict(network=TINY['own'], taps=['stage:2']), "there is no tap 'stage:2'. It returns 2 maps"),
    (dict(network=TINY['timm-resnet'], taps=['stage:7']), "there is no tap 'stage:7'. It returns 5 maps"),
    (
        dict(network=TINY['timm-resnet'], img_size=32, patch_size=8),
        'one vector for an image .* cannot be resampled to 4 × 4',
    ),
    (dict(network=dict(type='mmpretrain.VisionTransformer', arch='deit-tiny', img_size=64)), 'which is no map'),
    (dict(network=TINY['mmpretrain-swin'], img_size=(64, 8), patch_size=8), 'cannot compute|one vector'),
    (dict(network=TINY['own'], mask_at='steam'), "no such module. Use 'pixels', or one of .'stem', 'deep'"),
    (dict(network=TINY['own'], mask_at='deep', patch_size=4), 'cannot be divided into'),
    (dict(network=TINY['own'], mask_at='units'), "only timm's Hiera and mmpretrain's MAEHiViT"),
    (
        dict(network=UNITS['hiera'], img_size=224, mask_at='units'),
        r'has \(7, 7\) units, the student \(14, 14\) patches. Change patch_size',
    ),
    (
        dict(network=UNITS['hivit'], mask_at='units', patch_size=8),
        'Read its last stage, and set patch_size to its stride',
    ),
]


@pytest.mark.parametrize('options, message', REFUSED)
def test_backbone_student__refuses_in_one_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        BackboneStudent(**{'img_size': 64, **options})


def test_backbone_student__refuses_taps_and_images_that_it_was_not_built_for():
    student = student_of('own')
    with pytest.raises(ValueError, match=r"has the taps \['output'\], got 'stage:0'"):
        student.tap_spec('stage:0')
    with pytest.raises(ValueError, match='was built for img_size=64'):
        student(torch.randn(1, 3, 32, 32))


def test_distiller__says_how_a_backbone_becomes_a_student():
    parts = dict(masking=dict(type='NoMasking'), teachers={}, objectives=dict(x={}))
    with pytest.raises(
        ValueError, match=r"mmpretrain.ResNet has no taps. Use .* network=dict\(type='mmpretrain.ResNet', …"
    ):
        MODELS.build(dict(type='MaskedDistiller', backbone=dict(type='mmpretrain.ResNet', depth=18), **parts))


def test_distiller__refuses_a_masking_that_the_student_cannot_apply():
    with pytest.raises(ValueError, match='BackboneStudent sees every patch, but RandomMasking hides some'):
        distiller(TINY['own'], masking=dict(type='RandomMasking', ratio=0.5))
    backbone = dict(type='PlainViT', arch=dict(width=8, depth=1, num_heads=1), img_size=16, patch_size=8)
    assert not PlainViT.can_hide and MODELS.build(backbone).can_hide is False


def test_reset_parameters__draws_all_weights_anew():
    student = student_of('mmpretrain-resnet', mask_at='maxpool')
    student.init_weights()
    student.train()(torch.randn(4, 3, 64, 64))
    before = copy.deepcopy(student.state_dict())
    student.reset_parameters()
    after = student.state_dict()
    assert not torch.equal(after['network.layer4.0.conv1.weight'], before['network.layer4.0.conv1.weight'])
    assert not torch.equal(after['mask_token'], before['mask_token'])
    assert after['network.bn1.running_mean'].abs().sum() == 0 < before['network.bn1.running_mean'].abs().sum()


def test_momentum_teacher__follows_the_statistics_of_batch_norms():
    model = distiller(TINY['timm-resnet'], teacher=dict(type='MomentumTeacher', momentum=0.9)).train()
    model.init_weights()
    model.begin_training(Progress(0, 2))
    model.loss(torch.randn(4, 3, 64, 64))
    model.after_step(Progress(1, 2))
    own, teacher = model.backbone.network.bn1, model.teachers['t'].network.network.bn1
    assert own.running_mean.abs().sum() > 0 and torch.equal(own.running_mean, teacher.running_mean)


def test_teachers__that_count_blocks_refuse_a_student_without_blocks():
    for options in (
        dict(type='BootstrappedTeacher', start_depth=0),
        dict(type='LayerAverageTeacher', momentum=0.9, last=2),
    ):
        with pytest.raises(ValueError, match='counts the blocks of a ViT, .* is a BackboneStudent. Use a Mom'):
            distiller(TINY['own'], teacher=options)


def test_init_weights__starts_from_a_file_strictly(tmp_path):
    source = student_of('timm-convnext')
    torch.save({'state_dict': source.network.state_dict()}, tmp_path / 'whole.pth')
    start = dict(type='Pretrained', checkpoint=str(tmp_path / 'whole.pth'))
    student = student_of('timm-convnext', init_cfg=start)
    student.init_weights()
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), source.parameters(), strict=True))
    weights = source.network.state_dict()
    del weights['stages.1.blocks.0.mlp.fc1.weight']
    torch.save({'state_dict': weights}, tmp_path / 'whole.pth')
    with pytest.raises(ValueError, match='does not cover'):
        student_of('timm-convnext', init_cfg=start).init_weights()


def test_distiller__refuses_a_given_mask_that_the_student_cannot_apply():
    model = distiller(TINY['own'])
    images, (rows, columns) = torch.randn(2, 3, 64, 64), model.backbone.grid
    for hidden in (0, 3):
        samples = [DataSample().set_mask(torch.arange(rows * columns) < hidden) for _ in range(2)]
        if hidden == 0:
            assert 'loss_feature' in model.loss(images, samples)
            continue
        with pytest.raises(ValueError, match='masks with .* visible patches, but the student or a teacher needs'):
            model.loss(images, samples)


def test_precision__residual_stream_of_a_student_without_one():
    with pytest.raises(ValueError, match="residual: 'bfloat16'}: no student or head has such a stream. Leave it out"):
        set_precision(distiller(TINY['own']), residual='bfloat16')


def test_init_weights__pretrained_without_a_file():
    with pytest.raises(ValueError, match='add checkpoint=FILE'):
        student_of('own', init_cfg=dict(type='Pretrained')).init_weights()
