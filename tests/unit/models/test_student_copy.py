"""Teachers copied from the student: stages, momentum, checkpoints, and against the formula."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.networks import ARCH, hidden_masks, scatter_weights
from helpers.teachers import CLIP_MEAN, CLIP_STD, SEEDED, teacher_of
from mmengine.runner.checkpoint import load_state_dict as mmengine_load
from torch import nn

from mkd_plugin.models.protocols import Progress
from mkd_plugin.models.students import MaskTokenViT, VisibleViT
from mkd_plugin.structures import TokenMask


@pytest.fixture
def network(vit_options):
    return scatter_weights(VisibleViT(drop_path_rate=0.9, **vit_options)).double()


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
    before = {name: value.clone() for name, value in teacher.network.state_dict().items()}
    student = scatter_weights(network, std=1.0)
    teacher.after_step(student, Progress(round(1000 * progress), 1000))
    after, moved = teacher.network.state_dict(), student.state_dict()
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


@pytest.mark.parametrize('stages', [[0.5, 0.5], [1.5, 1], 2.0])
def test_bootstrapped_teacher__stages_are_whole_numbers(network, stages):
    with pytest.raises(ValueError, match='their relative lengths: whole numbers of at least 1'):
        teacher_of(dict(type='BootstrappedTeacher', stages=stages), network)
