"""Teachers: frozen, with their own pixel statistics, in checkpoints or not, and against independent computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.networks import ARCH, hidden_masks, poison, scatter_weights
from mmengine.model import BaseModule
from mmengine.runner.checkpoint import load_state_dict as mmengine_load
from PIL import Image
from torch import nn

from mkd_plugin.models.protocols import Progress, StudentContext, freeze
from mkd_plugin.models.students import MaskTokenViT, VisibleViT
from mkd_plugin.models.teachers.vit import IMAGENET_MEAN, IMAGENET_STD
from mkd_plugin.registry import build
from mkd_plugin.structures import TokenMask

CLIP_MEAN, CLIP_STD = (122.771, 116.746, 104.094), (68.501, 66.632, 70.323)
SEEDED = dict(type='ViTTeacher', arch=ARCH, patch_size=4, seed=3)


class TinyGenerator(BaseModule):
    """Target generator with weights and a buffer: one vector per patch."""

    def __init__(self, init_cfg=None):
        super().__init__(init_cfg)
        self.patches = nn.Conv2d(3, 6, 4, 4)
        self.norm = nn.BatchNorm2d(6)

    def forward(self, images):
        return self.norm(self.patches(images)).flatten(2).transpose(1, 2)


EVERY = {
    'vit': SEEDED,
    'visible vit': dict(SEEDED, sees='visible'),
    'bootstrapped': dict(type='BootstrappedTeacher'),
    'bootstrapped from a vit': dict(type='BootstrappedTeacher', start=SEEDED),
    'momentum': dict(type='MomentumTeacher', momentum=0.9),
    'pixel': dict(type='PixelTeacher'),
    'generator': dict(type='GeneratorTeacher', generator=dict(type=TinyGenerator)),
}


def context_of(network, mean=IMAGENET_MEAN, std=IMAGENET_STD):
    return StudentContext(network, tuple(mean), tuple(std))


@pytest.fixture
def network(vit_options):
    return scatter_weights(VisibleViT(drop_path_rate=0.9, **vit_options)).double()


def teacher_of(cfg, network):
    return build(cfg, student=context_of(network)).double()


@pytest.mark.parametrize('cfg', EVERY.values(), ids=EVERY)
def test_teacher__has_no_parameters_and_stays_in_eval_mode(cfg, network):
    """A student's drop path of 0.9 would make its copy random in training mode."""
    teacher = teacher_of(cfg, network)
    around = nn.ModuleDict({'teacher': teacher}).train()
    assert list(around.parameters()) == []
    assert [name for name, module in teacher.named_modules() if name and module.training] == []
    assert not teacher.training


@pytest.mark.parametrize('cfg', EVERY.values(), ids=EVERY)
def test_teacher__only_what_no_file_has_is_saved(cfg, network):
    saved = set(teacher_of(cfg, network).state_dict())
    if cfg['type'] in ('BootstrappedTeacher', 'MomentumTeacher'):
        copied = {f'network.{name}' for name in network.state_dict()}
        assert saved == copied | ({'num_promotions'} if cfg['type'] == 'BootstrappedTeacher' else set())
    else:
        assert saved == set()


@pytest.mark.parametrize('in_checkpoints', [True, False])
def test_freeze__same_values_without_parameters(in_checkpoints):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2)).eval()
    images = torch.randn(2, 3, 3, 3)
    wanted, keys = net(images), set(net.state_dict())
    freeze(net, in_checkpoints=in_checkpoints)
    assert list(net.parameters()) == []
    assert set(net.state_dict()) == (keys if in_checkpoints else set())
    assert torch.equal(net(images), wanted)
    assert not net(images).requires_grad
    assert net.double()(images.double()).dtype == torch.float64  # buffers move with the module


# --- ViTTeacher


def normalised(raw_BCHW, mean, std):
    """Channel by channel, like a data preprocessor."""
    return torch.stack([(raw_BCHW[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)


@pytest.mark.parametrize('student', ['imagenet', 'none', 'clip'])
@pytest.mark.parametrize('teacher', ['imagenet', 'clip'])
def test_view__equals_normalising_the_stored_image(network, student, teacher):
    statistics = dict(imagenet=(IMAGENET_MEAN, IMAGENET_STD), clip=(CLIP_MEAN, CLIP_STD), none=((0.0,) * 3, (1.0,) * 3))
    raw_BCHW = torch.randint(0, 256, (2, 3, 16, 16)).double()
    mean, std = statistics[teacher]
    own = build({**SEEDED, 'pixel_mean': mean, 'pixel_std': std}, student=context_of(network, *statistics[student]))
    found = own.double().view(normalised(raw_BCHW, *statistics[student]))
    torch.testing.assert_close(found, normalised(raw_BCHW, mean, std), rtol=1e-6, atol=1e-6)


def test_view__same_statistics_cost_nothing(network, images):
    assert teacher_of(SEEDED, network).view(images) is images


def test_view__same_statistics_cost_nothing_with_mmpretrains_preprocessor(build_distiller, images):
    model = build_distiller(
        teachers=dict(boot=SEEDED), data_preprocessor=dict(mean=list(IMAGENET_MEAN), std=list(IMAGENET_STD))
    )
    assert model.teachers['boot'].view(images) is images


@pytest.mark.parametrize('patch_size', [3, 5, 8])
def test_view__resizes_to_the_same_grid_with_antialias(network, images, patch_size):
    """A /14 teacher of a /16 student: 4 × 4 patches on both sides. Against Pillow's bicubic, which antialiases."""
    teacher = teacher_of(dict(SEEDED, patch_size=patch_size), network)
    side = 4 * patch_size
    assert (teacher.network.image_hw, teacher.network.grid) == ((side, side), (4, 4))
    channels = [
        np.asarray(Image.fromarray(channel.float().numpy()).resize((side, side), Image.Resampling.BICUBIC))
        for channel in images.flatten(0, 1)
    ]
    wanted = torch.from_numpy(np.stack(channels)).double().view(3, 3, side, side)
    torch.testing.assert_close(teacher.view(images), wanted, rtol=1e-5, atol=1e-5)
    assert teacher(images, None, ('output',)).tokens('output').shape == (3, 17, 32)


def test_vit_teacher__seed_is_all_that_counts(network):
    state = torch.random.get_rng_state()
    one, same, other = (teacher_of(dict(SEEDED, seed=seed), network) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)  # the run's random state is unchanged
    weights = [dict(teacher.network.named_buffers()) for teacher in (one, same, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]['layers.0.attn.qkv.weight'], weights[2]['layers.0.attn.qkv.weight'])
    torch.manual_seed(3)
    fresh = VisibleViT(arch=ARCH, img_size=16, patch_size=4).double()  # the usual initialisation
    assert torch.equal(weights[0]['layers.0.attn.qkv.weight'], fresh.layers[0].attn.qkv.weight)


def test_vit_teacher__seeing_visible_patches_reads_no_other(network, images):
    hidden_BL = hidden_masks()
    mask = TokenMask.from_hidden(hidden_BL, 4)
    teacher = teacher_of(dict(SEEDED, sees='visible', pixel_mean=CLIP_MEAN), network)
    assert not teacher.sees_all
    found = teacher(poison(images, hidden_BL), mask, ('block:1', 'relation:0'))
    wanted = teacher(images, mask, ('block:1', 'relation:0'))
    assert found.mask is mask
    assert torch.equal(found.tokens('block:1'), wanted.tokens('block:1'))
    assert found.tokens('block:1').isfinite().all()
    assert found.tokens('relation:0').shape == (3, 4, 5, 5)


def test_vit_teacher__seeing_visible_patches_is_not_resized(network):
    """Resizing would mix hidden pixels into visible patches."""
    with pytest.raises(ValueError, match="teacher's img_size=12 differs from the student's 16"):
        teacher_of(dict(SEEDED, sees='visible', patch_size=3), network)


def test_vit_teacher__seeing_all_ignores_the_mask(network, images):
    mask = TokenMask.from_hidden(hidden_masks(), 4)
    teacher = teacher_of(SEEDED, network)
    found = teacher(images, mask, ('output',))
    assert found.mask is None
    assert torch.equal(found.tokens('output'), teacher.network(images).tokens('output'))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            dict(img_size=20),
            r"has a 5 × 5 grid \(img_size=20, patch_size=4\), the student 4 × 4. Set the teacher's img_size=16",
        ),
        (dict(patch_size=8, img_size=16), 'has a 2 × 2 grid'),
        (
            dict(checkpoint='file.pth'),
            r"exactly one of the teacher's checkpoint and seed \(random weights\), got checkpoint=file.pth, seed=3",
        ),
        (dict(seed=None), "exactly one of the teacher's checkpoint and seed"),
        (dict(sees='visible', patch_size=3), 'resizing would mix hidden pixels into visible patches'),
        (dict(sees='hidden'), "sees='hidden': use 'all' or 'visible'"),
        (dict(momentum=0.9), r"no option \['momentum'\]"),
    ],
)
def test_vit_teacher__wrong_options(network, options, message):
    with pytest.raises(ValueError, match=message):
        teacher_of({**SEEDED, **options}, network)


# --- BootstrappedTeacher


def student_with_other_weights(network):
    other = type(network)(arch=ARCH, img_size=16, patch_size=4).double()
    return scatter_weights(other, std=0.2).eval()


@pytest.mark.parametrize('kind', [VisibleViT, MaskTokenViT])
def test_bootstrapped_teacher__starts_as_the_student(kind, vit_options, images):
    """Also after init_weights has changed the student's weights."""
    network = scatter_weights(kind(**vit_options)).double().eval()
    teacher = teacher_of(dict(type='BootstrappedTeacher'), network)
    mask = TokenMask.from_hidden(hidden_masks(), 4)
    for _ in range(2):
        found = teacher(images, mask, ('block:-1', 'output'))
        wanted = network(images, None, taps=('block:-1', 'output'))
        assert found.mask is None
        for tap in ('block:-1', 'output'):
            assert torch.equal(found.tokens(tap), wanted.tokens(tap))
        scatter_weights(network)
        assert not torch.equal(teacher(images, None, ('output',)).tokens('output'), network(images).tokens('output'))
        teacher.start_from(network)


@pytest.mark.parametrize('depth', [0, 1, 2])
def test_bootstrapped_teacher__start_depth_counts_until_the_first_promotion(network, images, depth):
    network.eval()
    teacher = teacher_of(dict(type='BootstrappedTeacher', start_depth=depth), network)
    tokens = network.embed(images, None)
    for block in network.layers[:depth]:
        tokens, _ = block(tokens)
    found = teacher(images, None, ('block:-1', 'output'))
    assert torch.equal(found.tokens('block:-1'), tokens)
    assert torch.equal(found.tokens('output'), network.ln1(tokens))
    teacher.promote(network)
    assert torch.equal(teacher(images, None, ('output',)).tokens('output'), network(images).tokens('output'))


@pytest.mark.parametrize(('depth', 'tap'), [(0, 'relation:-1'), (0, 'input:2'), (2, 'block:2'), (1, 'block:-2')])
def test_bootstrapped_teacher__tap_beyond_start_depth_is_refused_when_built(network, depth, tap):
    teacher = teacher_of(dict(type='BootstrappedTeacher', start_depth=depth), network)
    with pytest.raises(ValueError, match='out of range'):
        teacher.tap_spec(tap)


def test_promote__copies_and_does_not_follow(network, images):
    teacher = teacher_of(dict(type='BootstrappedTeacher'), network)
    student = student_with_other_weights(network)
    teacher.promote(student)
    wanted = student(images).tokens('output')
    assert torch.equal(teacher(images, None, ('output',)).tokens('output'), wanted)
    scatter_weights(student)
    assert torch.equal(teacher(images, None, ('output',)).tokens('output'), wanted)
    assert teacher.promotions == teacher.state_dict()['num_promotions'].item() == 1


@pytest.mark.parametrize('options', [{}, dict(start=SEEDED), dict(start_depth=0)], ids=['student', 'vit', 'depth 0'])
@pytest.mark.parametrize('load', ['torch', 'mmengine', 'inside a model'])
@pytest.mark.parametrize('promotions', [0, 2])
def test_bootstrapped_teacher__state_survives_a_round_trip(network, images, options, load, promotions):
    cfg = dict(type='BootstrappedTeacher', **options)
    before = teacher_of(cfg, network)
    for _ in range(promotions):
        before.promote(student_with_other_weights(network))
    after = teacher_of(cfg, student_with_other_weights(network))
    state = {name: value.clone() for name, value in before.state_dict().items()}
    if load == 'torch':
        after.load_state_dict(state, strict=True)
    elif load == 'mmengine':
        mmengine_load(after, state, strict=True)
    else:
        around = nn.ModuleDict({'boot': after})
        mmengine_load(around, {f'boot.{name}': value for name, value in state.items()}, strict=True)
    assert after.promotions == promotions
    found, wanted = (teacher(images, None, ('block:-1',)).tokens('block:-1') for teacher in (after, before))
    assert torch.equal(found, wanted)


def test_bootstrapped_teacher__starts_from_another_teacher(network, images):
    """With its own pixel statistics: teacher 0 from a file may use CLIP's, the student's copy uses the student's."""
    cfg = dict(SEEDED, pixel_mean=CLIP_MEAN, pixel_std=CLIP_STD, arch=dict(width=32, depth=2, num_heads=4))
    teacher = teacher_of(dict(type='BootstrappedTeacher', start=cfg), network)
    wanted = teacher_of(cfg, network)(images, None, ('block:-1',)).tokens('block:-1')
    assert torch.equal(teacher(images, None, ('block:-1',)).tokens('block:-1'), wanted)
    student = student_with_other_weights(network)
    teacher.start_from(student)  # does not touch teacher 0
    assert torch.equal(teacher(images, None, ('block:-1',)).tokens('block:-1'), wanted)
    teacher.promote(student)
    wanted = student(images, taps=('block:-1',)).tokens('block:-1')
    assert torch.equal(teacher(images, None, ('block:-1',)).tokens('block:-1'), wanted)


@pytest.mark.parametrize(
    ('start', 'tap'),
    [
        (dict(SEEDED, arch=dict(width=64, depth=3, num_heads=4)), 'output'),
        (dict(type='PixelTeacher'), 'output'),
        (dict(SEEDED, arch=dict(width=32, depth=3, num_heads=2)), 'relation:0'),
    ],
    ids=['width', 'no cls', 'heads'],
)
def test_bootstrapped_teacher__teacher_0_of_another_width(network, start, tap):
    teacher = teacher_of(dict(type='BootstrappedTeacher', start=start), network)
    with pytest.raises(ValueError, match=f"Teacher 0 gives TapSpec.* at '{tap}', but the student, the next teacher"):
        teacher.tap_spec(tap)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(start='random'), "start='random': use 'student' or the config of a teacher"),
        (dict(start_depth=4), r"start_depth=4: it must lie in \[0, 3\], and needs start='student'"),
        (dict(start_depth=-1), 'start_depth=-1'),
        (dict(start=SEEDED, start_depth=1), r"start_depth=1: it must lie in \[0, 3\], and needs start='student'"),
        (dict(start=dict(SEEDED, sees='visible')), "must see the whole image: use sees='all'"),
    ],
)
def test_bootstrapped_teacher__wrong_options(network, options, message):
    with pytest.raises(ValueError, match=message):
        teacher_of(dict(type='BootstrappedTeacher', **options), network)


# --- MomentumTeacher


@pytest.mark.parametrize('kind', [VisibleViT, MaskTokenViT])
@pytest.mark.parametrize(
    ('options', 'progress', 'momentum'),
    [
        (dict(momentum=0.9), 0.0, 0.9),
        (dict(momentum=0.9), 0.7, 0.9),
        (dict(momentum=dict(type='CosineRamp', start=0.996, end=1.0)), 0.0, 0.996),
        (dict(momentum=dict(type='CosineRamp', start=0.996, end=1.0)), 1.0, 1.0),
        (dict(momentum=dict(type='CosineRamp', start=0.996, end=1.0)), 0.5, 0.998),
        (dict(momentum=dict(type='CosineRamp', start=0.2, end=0.8)), 0.25, 0.8 - 0.3 * (1 + math.cos(math.pi / 4))),
        (dict(momentum=dict(type='LinearRamp', start=0.2, end=0.8)), 0.25, 0.35),
        (dict(momentum=dict(type='LinearRamp', start=0.2, end=0.8, steps=500)), 0.25, 0.5),  # data2vec's: then constant
        (dict(momentum=dict(type='LinearRamp', start=0.2, end=0.8, steps=500)), 0.9, 0.8),
    ],
)
def test_after_step__equals_the_formula(vit_options, kind, options, progress, momentum):
    network = scatter_weights(kind(position='learned', **vit_options)).double()
    teacher = teacher_of(dict(type='MomentumTeacher', **options), network)
    before = {name: value.clone() for name, value in teacher.network.named_buffers()}
    student = scatter_weights(network, std=1.0)
    teacher.after_step(student, Progress(round(1000 * progress), 1000))
    after, moved = dict(teacher.network.named_buffers()), student.state_dict()
    assert set(after) == set(moved)
    for name, value in after.items():
        wanted = momentum * before[name] + (1 - momentum) * moved[name]
        torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    'options', [dict(momentum=1.1), dict(momentum=-0.1), dict(momentum=dict(type='CosineRamp', start=0.9, end=2))]
)
def test_momentum_teacher__wrong_momentum(network, options):
    with pytest.raises(ValueError, match=r'every value must be in \[0, 1\]'):
        teacher_of(dict(type='MomentumTeacher', **options), network)


# --- pixels and generators


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


@pytest.mark.parametrize('kind', ['shared', 'per_block'])
def test_momentum_teacher__copies_a_student_with_relative_positions(kind):
    network = MaskTokenViT(
        arch=ARCH, img_size=16, patch_size=4, relative_position=kind, position='none', layer_scale=0.1
    ).double()
    teacher = teacher_of(dict(type='MomentumTeacher', momentum=0.9), network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()
    teacher.start_from(network)
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    found = teacher(images, None, ('output',)).tokens('output')
    torch.testing.assert_close(found, network.eval()(images).tokens('output'))
