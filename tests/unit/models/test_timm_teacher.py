"""timm's models as teachers, against timm itself."""

from __future__ import annotations

import pytest
import timm
import torch
from torch.nn import functional as F

from mkd_plugin.models.masking import RandomMasking
from mkd_plugin.models.objective import Objective
from mkd_plugin.models.protocols import DistillContext, StudentContext
from mkd_plugin.models.students import MaskTokenViT
from mkd_plugin.models.teachers import TimmTeacher
from mkd_plugin.models.teachers.timm import tell_licence
from mkd_plugin.structures import Region, TapSpec, TokenMask

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
TINY = {
    'vit': ('vit_tiny_patch16_224', dict(depth=2, embed_dim=16, num_heads=2, patch_size=8)),
    'swin': ('swin_tiny_patch4_window7_224', dict(embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=2)),
    'convnext': ('convnext_tiny', dict(depths=(1, 1, 1, 1), dims=(8, 8, 8, 16))),
    'resnet': ('resnet18', dict(channels=(4, 8, 8, 8), layers=(1, 1, 1, 1))),
}


def context_of(side=32):
    arch = dict(width=8, depth=1, num_heads=1)
    network = MaskTokenViT(arch=arch, img_size=side, patch_size=8)
    return StudentContext(network, MEAN, STD)


def teacher_of(kind, **options):
    name, sizes = TINY[kind]
    options = {'seed': 0, **options}
    return TimmTeacher(student=context_of(), model=name, options=sizes, **options)


@pytest.mark.parametrize('kind', TINY)
def test_timm_teacher__taps_equal_hooks_on_the_unmodified_model(kind):
    teacher = teacher_of(kind, resample='bilinear')
    images = torch.randn(2, 3, 32, 32)
    count = len(teacher.network.feature_info)
    whole = teacher.network.forward_intermediates(teacher.view(images))
    for index in range(count):
        found = teacher(images, None, (f'block:{index}',)).tokens(f'block:{index}')[:, int(teacher.has_cls) :]
        wanted = torch.nn.functional.interpolate(whole[1][index], (4, 4), mode='bilinear', antialias=True)
        torch.testing.assert_close(found, wanted.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)
        assert teacher.tap_spec(f'block:{index}').channels == found.shape[2]


def test_timm_teacher__output_of_a_vit_is_its_normed_tokens():
    teacher, images = teacher_of('vit'), torch.randn(2, 3, 32, 32)
    wanted = teacher.network.forward_features(teacher.view(images))
    torch.testing.assert_close(teacher(images, None, ('output', 'block:0')).tokens('output'), wanted)


def test_timm_teacher__stops_after_the_last_tap():
    teacher, ran = teacher_of('vit'), []
    for index, block in enumerate(teacher.network.blocks):
        block.register_forward_hook(lambda *_, i=index: ran.append(i))
    teacher(torch.randn(1, 3, 32, 32), None, ('block:0',))
    assert ran == [0]


@pytest.mark.parametrize('kind', TINY)
def test_timm_teacher__is_frozen_and_stays_out_of_checkpoints(kind):
    teacher = teacher_of(kind, resample='nearest').train()
    assert not teacher.training
    assert not list(teacher.parameters())
    assert not teacher.state_dict()


def test_timm_teacher__loads_timms_own_file_and_drops_its_classifier(tmp_path):
    name, sizes = TINY['vit']
    source = timm.create_model(name, num_classes=10, img_size=32, **sizes).eval()
    torch.save(source.state_dict(), tmp_path / 'vit.pth')
    teacher = teacher_of('vit', checkpoint=str(tmp_path / 'vit.pth'), seed=None)
    images = torch.randn(2, 3, 32, 32)
    view = images * torch.tensor(STD).view(-1, 1, 1) + torch.tensor(MEAN).view(-1, 1, 1)  # stored pixels
    mean, std = (255 * torch.tensor(source.pretrained_cfg[what]).view(-1, 1, 1) for what in ('mean', 'std'))
    wanted = source.forward_features((view - mean) / std)
    found = teacher(images, None, ('output',)).tokens('output')
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_timm_teacher__region_of_the_student_is_read_from_its_grid():
    teacher = teacher_of('swin', resample='bicubic')
    mask = TokenMask.from_kept(torch.tensor([[0, 5], [3, 9]]), 16)
    features = teacher(torch.randn(2, 3, 32, 32), mask, ('output',))
    region = Region.parse('visible').tokens(mask)
    whole = features.tokens('output')
    assert torch.equal(features.select('output', region)[1], whole[1, [3, 9]])


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(seed=None), "exactly one of the teacher's checkpoint and seed"),
        (dict(model='resnet999'), "has no model 'resnet999'"),
        (dict(resample='area'), "resample='area': use one of"),
        (dict(options=dict(wings=2)), "rejects the options {'in_chans': 3, 'wings': 2}"),
    ],
)
def test_timm_teacher__wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        TimmTeacher(student=context_of(), **{'model': 'resnet18', 'seed': 0, **options})


@pytest.mark.parametrize(
    ('tap', 'message'),
    [
        ('block:5', r"taps 'output', 'pooled' and 'block:i' with i in \[−5, 5\), got 'block:5'"),
        ('prefix:0', "got 'prefix:0'"),
        ('relation:0', 'To read relations or attention of a plain ViT, use ViTTeacher'),
        ('output', r"'output' of resnet18 has a 1 × 1 grid, the student 4 × 4. Set the teacher's resample"),
    ],
)
def test_timm_teacher__wrong_taps(tap, message):
    with pytest.raises(ValueError, match=message):
        teacher_of('resnet').tap_spec(tap)


def test_timm_teacher__file_of_another_model(tmp_path):
    torch.save(timm.create_model('resnet18').state_dict(), tmp_path / 'other.pth')
    with pytest.raises(ValueError, match='does not cover ConvNeXt'):
        teacher_of('convnext', checkpoint=str(tmp_path / 'other.pth'), seed=None)


def test_generator_teacher__a_file_that_does_not_cover_the_generator_is_refused(tmp_path):
    from mkd_plugin.models.teachers import GeneratorTeacher

    torch.save({'state_dict': {'something.weight': torch.zeros(2)}}, tmp_path / 'dvae.pth')
    generator = dict(type='mmpretrain.DALL-E', init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'dvae.pth')))
    with pytest.raises(ValueError, match='does not cover DALLEEncoder: .* tensors are missing'):
        GeneratorTeacher(student=context_of(), generator=generator, num_classes=8192)


# Families whose final features, prefix tokens or sizes are special.
SMALL = dict(depth=2, embed_dim=32, num_heads=2)
SPECIAL = {  # model: (arguments of timm, side of its input, whether the blocks have cls, tokens before the patches)
    'vit_small_patch16_dinov3': (dict(depth=2, embed_dim=64, num_heads=2), 224, True, 5),
    'vit_small_patch14_reg4_dinov2': (SMALL, 196, True, 5),
    'vit_base_patch16_siglip_224': (SMALL, 224, False, 0),
    'vit_base_patch16_radio_v3': (SMALL, 224, True, 8),
    'eva02_tiny_patch14_224': (dict(depth=2, embed_dim=48, num_heads=3), 196, True, 1),
    'aimv2_large_patch14_224': (SMALL, 196, False, 0),
    'naflexvit_base_patch16_siglip': (SMALL, 224, False, 0),
    'cait_xxs24_224': (dict(depth=2), 224, False, 1),
    'xcit_nano_12_p16_224': (dict(depth=2), 224, False, 1),
    'hiera_tiny_224': (dict(embed_dim=16, num_heads=1, stages=(1, 1, 1, 1)), 224, False, 0),
    'mvitv2_tiny': ({}, 224, False, 0),
    'levit_128s': ({}, 224, False, 0),
    'mixer_s16_224': ({}, 224, False, 0),
    'coat_lite_tiny': ({}, 224, False, 0),
}


@pytest.fixture(scope='module')
def student_224():
    network = MaskTokenViT(arch=dict(width=8, depth=1, num_heads=1), img_size=224, patch_size=16)
    return StudentContext(network, MEAN, STD)


@pytest.mark.parametrize('model', SPECIAL)
def test_timm_teacher__special_families_equal_timm(model, student_224):
    options, side, has_cls, prefix = SPECIAL[model]
    teacher = TimmTeacher(student=student_224, model=model, seed=0, options=options, resample='nearest')
    images, cls = torch.randn(1, 3, 224, 224), Region.parse('cls').tokens(TokenMask.from_kept(torch.tensor([[0]]), 196))
    assert (teacher.view.image_hw, teacher.has_cls, teacher.num_prefix) == ((side, side), has_cls, prefix)
    final = teacher.network.forward_features(teacher.view(images))
    features = teacher(images, None, ('output', 'block:-1', 'pooled'))
    assert features.num_prefix == has_cls
    last = teacher.network.forward_intermediates(teacher.view(images), indices=1, intermediates_only=True)[-1]
    height, width = last.shape[-2:]
    output = final[:, -height * width :].mT.unflatten(2, (height, width)) if final.dim() == 3 else final
    for tap, wanted in (('output', output), ('block:-1', last)):
        spec = teacher.tap_spec(tap)
        assert spec.cls == has_cls and features.tokens(tap).shape == (1, 196 + has_cls, spec.channels)
        resampled = F.interpolate(wanted, (14, 14), mode='nearest').flatten(2).mT
        assert torch.equal(features.tokens(tap)[:, int(has_cls) :], resampled)
    if has_cls:
        assert torch.equal(features.select('output', cls)[:, 0], final[:, 0])
    pooled = teacher.network.forward_head(final, pre_logits=True)
    assert torch.equal(features.select('pooled', cls)[:, 0], pooled)
    assert teacher.tap_spec('pooled') == TapSpec('tokens', pooled.shape[1], patches=False)
    for number in range(prefix):
        name = f'prefix:{number}'
        assert torch.equal(teacher(images, None, (name,)).select(name, cls)[:, 0], final[:, number])


def test_timm_teacher__what_timm_cannot_do_is_one_sentence(student_224, capsys):
    crossvit = TimmTeacher(student=student_224, model='crossvit_tiny_240', seed=0, resample='nearest')
    assert crossvit.view.image_hw == (240, 240)  # the only size that it takes
    with pytest.raises(
        ValueError, match="features of crossvit_tiny_240 are no grid of patches. Use 'pooled' or 'block:-1'"
    ):
        crossvit.tap_spec('output')
    levit = TimmTeacher(student=student_224, model='levit_128s', seed=0, img_size=256, resample='nearest')
    with pytest.raises(
        ValueError, match="timm's levit_128s cannot compute 'output' of 256 × 256 images .* Try img_size=224"
    ):
        levit.tap_spec('output')


def test_timm_teacher__a_restricted_licence_is_printed_once(student_224, tmp_path, monkeypatch):
    name, sizes = 'vit_small_patch16_dinov3', dict(depth=1, embed_dim=64, num_heads=2)
    torch.save(timm.create_model(name, num_classes=0, **sizes).state_dict(), tmp_path / 'dinov3.pth')
    told = []
    tell_licence.cache_clear()  # other tests load this model
    monkeypatch.setattr('mkd_plugin.models.teachers.timm.print_log', lambda message, logger: told.append(message))
    for _ in range(2):
        TimmTeacher(student=student_224, model=name, checkpoint=str(tmp_path / 'dinov3.pth'), options=sizes)
    assert told == [
        f"timm names 'dinov3-license' as the licence of {name}'s weights. Read it before you use or publish a student."
    ]
    tell_licence('vit_tiny_patch16_224', 'apache-2.0')
    assert len(told) == 1


def test_objective__a_vector_per_image_is_compared_at_cls_only(student_224):
    teacher = TimmTeacher(student=student_224, model='vit_base_patch16_siglip_224', seed=0, options=SMALL)
    context = DistillContext(student_224, {'siglip': teacher}, RandomMasking(student=student_224, ratio=0.75))
    options = dict(context=context, teacher='siglip', tap='pooled', student='output', loss=dict(type='CosineLoss'))
    head = dict(type='LinearHead')
    with pytest.raises(ValueError, match="'pooled' of the teacher 'siglip' is one vector per image: use region='cls'"):
        Objective(**options, head=head, region='all')
    objective, images = Objective(**options, head=head, region='cls'), torch.randn(2, 3, 224, 224)
    mask = TokenMask.from_kept(torch.arange(49).expand(2, 49), 196)
    student = student_224.network(images, mask, ('output',))
    term, _ = objective(teacher(images, mask, ('pooled',)), student, mask)
    predicted = objective.heads[0](student, ('output',), objective.region.tokens(mask))[:, 0]
    pooled = teacher.network(teacher.view(images))
    wanted = 1 - torch.nn.functional.cosine_similarity(predicted, pooled)
    torch.testing.assert_close(term.losses[0].flatten(), wanted)
