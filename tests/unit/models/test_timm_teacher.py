"""timm's models as teachers, against timm itself."""

from __future__ import annotations

import pytest
import timm
import torch

from mkd_plugin.models.protocols import StudentContext
from mkd_plugin.models.students import MaskTokenViT
from mkd_plugin.models.teachers import TimmTeacher
from mkd_plugin.structures import Region, TokenMask

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
        found = teacher(images, None, (f'block:{index}',)).tokens(f'block:{index}')
        wanted = torch.nn.functional.interpolate(whole[1][index], (4, 4), mode='bilinear', antialias=True)
        torch.testing.assert_close(found, wanted.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)
        assert teacher.tap_spec(f'block:{index}').channels == found.shape[2]


def test_timm_teacher__output_of_a_vit_is_its_normed_patch_tokens():
    teacher, images = teacher_of('vit'), torch.randn(2, 3, 32, 32)
    wanted = teacher.network.forward_features(teacher.view(images))[:, 1:]
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
    wanted = source.forward_features((view - mean) / std)[:, 1:]
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
        ('block:5', r"taps 'output' and 'block:i' with i in \[−5, 5\), got 'block:5'"),
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
