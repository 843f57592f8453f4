"""Pixel and generator teachers against independent computations, and outputs that do not fit."""

from __future__ import annotations

import pytest
import torch
from helpers.networks import scatter_weights
from helpers.teachers import CLIP_MEAN, CLIP_STD, EVERY, TinyGenerator, context_of, normalised, teacher_of
from torch import nn

from mkd_plugin.models.students import VisibleViT
from mkd_plugin.models.teachers.vit import IMAGENET_MEAN, IMAGENET_STD
from mkd_plugin.registry import build


@pytest.fixture
def network(vit_options):
    return scatter_weights(VisibleViT(drop_path_rate=0.9, **vit_options)).double()


def test_pixel_teacher__equals_maes_patchify(network, images):
    teacher = teacher_of(dict(type='PixelTeacher'), network)
    wanted = torch.einsum('nchpwq->nhwpqc', images.reshape(3, 3, 4, 4, 4, 4)).reshape(3, 16, 48)
    features = teacher(images, None, ('output',))
    assert torch.equal(features.tokens('output'), wanted)
    spec = teacher.tap_spec('output')
    assert (features.num_prefix, features.mask, spec.kind, spec.channels, spec.cls) == (0, None, 'tokens', 48, False)


@pytest.mark.parametrize('name', ['pixel', 'generator'])
def test_tap_spec__output_is_the_only_tap(network, name):
    with pytest.raises(ValueError, match="has only the tap 'output', got 'block:-1'"):
        teacher_of(EVERY[name], network).tap_spec('block:-1')


HOG = dict(type='mmpretrain.HOGGenerator', pool=2, gaussian_window=14)  # gives 14 × 14 vectors whatever the size


def hog_student(patch_size):
    return VisibleViT(arch=dict(width=8, depth=1, num_heads=1), img_size=28, patch_size=patch_size)


def test_generator_teacher__equals_calling_hog():
    from mmpretrain.models import HOGGenerator

    images = torch.randn(2, 3, 28, 28)
    teacher = build(dict(type='GeneratorTeacher', generator=HOG), student=context_of(hog_student(2)))
    wanted = HOGGenerator(pool=2, gaussian_window=14)(images)
    features = teacher(images, None, ('output',))
    assert torch.equal(features.tokens('output'), wanted)
    spec = teacher.tap_spec('output')
    assert (wanted.shape[1], spec.channels, spec.cls, features.num_prefix) == (196, wanted.shape[2], False, 0)


def test_generator_teacher__wrong_number_of_vectors():
    with pytest.raises(
        ValueError, match='HOGGenerator gives 196 targets for one image of 28 × 28 px; .* 7 × 7 = 49 patches'
    ):
        build(dict(type='GeneratorTeacher', generator=HOG), student=context_of(hog_student(4)))


class Answer(nn.Module):
    """Target generator that computes its output from 4 × 4 patch means, (B, 3, 4, 4)."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, images):
        return self.answer(nn.functional.avg_pool2d(images, images.shape[-1] // 4))


def patch_means(images):
    """(B, 16, 3), patch by patch."""
    return torch.stack(
        [images[:, :, r : r + 4, c : c + 4].mean((2, 3)) for r in range(0, 16, 4) for c in range(0, 16, 4)], 1
    )


def as_sequence(x_BCHW):
    return x_BCHW.flatten(2).transpose(1, 2)


KINDS = {  # name: (the generator's output, options, channels, whether it has a cls token, the target)
    'features': (as_sequence, {}, 3, False, patch_means),
    'features and attention': (lambda x: (as_sequence(x), x), {}, 3, False, patch_means),
    'features with cls': (
        lambda x: torch.cat([x.mean((2, 3))[:, None], as_sequence(x)], 1), {}, 3, True,
        lambda images: torch.cat([images.mean((2, 3))[:, None], patch_means(images)], 1),
    ),
    'class indices': (
        lambda x: (as_sequence(x)[..., 0] > 0).long(), dict(num_classes=2), 2, False,
        lambda images: (patch_means(images)[..., :1] > 0).long(),
    ),
    'class scores': (
        lambda x: x, dict(num_classes=3), 3, False,
        lambda images: torch.tensor([[[one.index(max(one))] for one in row] for row in patch_means(images).tolist()]),
    ),
}  # fmt: skip


@pytest.mark.parametrize(('answer', 'options', 'channels', 'cls', 'wanted'), KINDS.values(), ids=KINDS)
def test_generator_teacher__every_kind_of_answer(network, images, answer, options, channels, cls, wanted):
    teacher = teacher_of(dict(type='GeneratorTeacher', generator=dict(type=Answer, answer=answer), **options), network)
    spec, features = teacher.tap_spec('output'), teacher(images, None, ('output',))
    assert (spec.kind, spec.channels, spec.cls, features.num_prefix) == ('tokens', channels, cls, int(cls))
    torch.testing.assert_close(features.tokens('output'), wanted(images), rtol=1e-12, atol=1e-12)


def test_generator_teacher__gets_its_own_pixels(network):
    """With another size and other statistics than the student's."""
    raw = torch.rand(2, 3, 1, 1, dtype=torch.float64).expand(-1, -1, 16, 16) * 255  # constant: resizing changes nothing
    cfg = dict(type='GeneratorTeacher', generator=dict(type=Answer, answer=as_sequence))
    teacher = teacher_of(dict(cfg, img_size=8, pixel_mean=CLIP_MEAN, pixel_std=CLIP_STD), network)
    seen = []
    teacher.generator.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    teacher(normalised(raw, IMAGENET_MEAN, IMAGENET_STD), None, ('output',))
    torch.testing.assert_close(seen[0], normalised(raw, CLIP_MEAN, CLIP_STD)[..., :8, :8], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ('answer', 'options', 'message'),
    [
        (lambda x: dict(output=x), {}, r'returned dict; expected \(B, N, D\), \(B, N\) or \(B, classes, h, w\)'),
        (lambda x: x.flatten(), {}, r'returned \(48,\)'),
        (
            lambda x: as_sequence(x)[:, :9],
            {},
            'Answer gives 9 targets for one image of 16 × 16 px; .* 4 × 4 = 16 patches',
        ),
        (lambda x: x, {}, 'gives torch.int64: set num_classes for class indices only, got None'),
        (as_sequence, dict(num_classes=3), 'set num_classes for class indices only, got 3'),
        (lambda x: x @ torch.ones(7), {}, r'Answer cannot compute images of \(16, 16\) px: .* Set img_size'),
    ],
)
def test_generator_teacher__answers_that_do_not_fit(network, answer, options, message):
    with pytest.raises(ValueError, match=message):
        teacher_of(dict(type='GeneratorTeacher', generator=dict(type=Answer, answer=answer), **options), network)


def test_generator_teacher__batch_norm_does_not_learn(network, images):
    teacher = teacher_of(EVERY['generator'], network).train()
    before = teacher.generator.norm.running_mean.clone()
    teacher(images, None, ('output',))
    assert torch.equal(teacher.generator.norm.running_mean, before)


def test_generator_teacher__init_cfg_is_obeyed(build_distiller):
    generator = dict(type=TinyGenerator, init_cfg=dict(type='Constant', layer='Conv2d', val=0.5))
    model = build_distiller('mae', teachers=dict(pixel=dict(type='GeneratorTeacher', generator=generator)))
    model.init_weights()
    assert (model.teachers['pixel'].generator.patches.weight == 0.5).all()
