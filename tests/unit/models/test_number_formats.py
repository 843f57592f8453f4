"""Precision options: what they change, how far results may move, and what they leave alone."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.networks import DBOT, scatter_weights
from torch import nn
from torch.nn import functional as F

from mkd_plugin.engine import sharding
from mkd_plugin.models import precision as formats
from mkd_plugin.models.protocols import Progress
from mkd_plugin.registry import MODELS

BOTH = dict(residual='bfloat16', teacher='fp8')
# Relative difference of the loss, and 1 − cosine of the gradients, from float32 and from plain autocast.
BOUNDS = {
    'autocast': (None, 2e-4, 5e-5),
    'residual': (dict(residual='bfloat16'), 1e-3, 2e-4),
    'teacher': (dict(teacher='bfloat16'), 2e-4, 5e-5),
    'fp8': (dict(teacher='fp8'), 3e-3, 5e-3),
    'both': (BOTH, 3e-3, 5e-3),
}


def build(precision=None, width=64, depth=12, **changes):
    cfg = copy.deepcopy({**DBOT, **changes})
    cfg['backbone'].update(arch=dict(width=width, depth=depth, num_heads=4), drop_path_rate=0.1)
    torch.manual_seed(0)
    model = scatter_weights(MODELS.build(dict(type='MaskedDistiller', precision=precision, **cfg)))
    model.begin_training(Progress(0, 1))
    return model


def step(model, amp=True):
    """Loss and gradient of one step, float64."""
    torch.manual_seed(1)
    with torch.autocast('cpu', torch.bfloat16, enabled=amp):
        results = model(torch.randn(16, 3, 16, 16), mode='loss')
    loss = sum(value for name, value in results.items() if name.startswith('loss_'))
    loss.backward()
    grads = [sharding.whole_of(p.grad) for p in model.parameters() if p.requires_grad]
    return loss.double().detach(), torch.cat([grad.flatten().double() for grad in grads])


@pytest.fixture(scope='module')
def references():
    """A step in float32, and one in plain autocast."""
    return step(build(), amp=False), step(build())


@pytest.mark.parametrize('option', BOUNDS)
def test_precision__loss_and_gradients_stay_within_the_documented_bounds(option, references):
    precision, of_loss, of_direction = BOUNDS[option]
    loss, grad = step(build(precision))
    assert precision is None or not torch.equal(grad, references[1][1])
    for wanted_loss, wanted_grad in references:
        assert abs(loss - wanted_loss) <= of_loss * wanted_loss
        assert 1 - F.cosine_similarity(grad, wanted_grad, dim=0) <= of_direction


def test_precision__streams_are_bfloat16_where_they_are_asked_for():
    """Between the blocks, and what autograd saves for the norms; the weights stay float32."""
    seen = {}
    for precision in (None, dict(residual='bfloat16'), dict(teacher='bfloat16')):
        model = build(precision, depth=2)
        parts = dict(student=model.backbone, head=model.objectives['feature'].heads[0])
        for name, part in (parts | dict(teacher=model.teachers['boot'].network)).items():
            part.layers[0].register_forward_hook(lambda _, args, out, name=name: seen.update({name: out[0].dtype}))
        step(model)
        half = {'student', 'head'} if precision == dict(residual='bfloat16') else {'teacher'} if precision else set()
        assert {name for name, dtype in seen.items() if dtype == torch.bfloat16} == half
        assert {value.dtype for value in model.state_dict().values()} <= {torch.float32, torch.int64}
        assert model.state_dict().keys() == build(depth=2).state_dict().keys()


def test_precision__draws_the_same_random_numbers():
    states = []
    for precision in (None, BOTH):
        build(precision, depth=2)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize('teacher', ['bfloat16', 'fp8'])
def test_precision__teachers_follow_the_student(teacher):
    """Small steps of a momentum teacher are not lost to rounding, and a promoted teacher is the student in this format."""
    model = build(dict(teacher=teacher), depth=2, teachers=dict(boot=dict(type='MomentumTeacher', momentum=0.9998)))
    own = model.teachers['boot'].network.layers[0].attn.qkv
    before, student = own.weight.clone(), model.backbone.layers[0].attn.qkv.weight
    model.after_step(Progress(1, 10))
    torch.testing.assert_close(own.weight, before.lerp(student, 1 - 0.9998), rtol=1e-6, atol=0)
    assert not torch.equal(own.weight, before)
    model = build(dict(teacher=teacher), depth=2)
    boot, images, tap = model.teachers['boot'], torch.randn(2, 3, 16, 16), ('block:-1',)
    boot.promote(model.backbone)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        found, wanted = (net(images, None, tap).tokens(tap[0]).float() for net in (boot, model.backbone.eval()))
    assert (found - wanted).norm() <= (0.01 if teacher == 'bfloat16' else 0.1) * wanted.norm()


def test_float8_linear__is_linear_but_for_rounding_of_each_row():
    """Rows of very different size: one scale for all would lose the small ones."""
    x = torch.randn(64, 48) * torch.logspace(-6, 6, 64, base=2).unsqueeze(1)
    linear = nn.Linear(48, 32)
    nn.init.zeros_(linear.bias)
    found, wanted = formats.float8_linear(x.bfloat16(), linear.weight, linear.bias).float(), linear(x)
    assert ((found - wanted).norm(dim=1) / wanted.norm(dim=1)).max() < 0.08
    assert formats.float8_linear(torch.zeros(16, 48).bfloat16(), linear.weight, linear.bias).eq(0).all()


def test_precision__under_fsdp2_in_one_process_with_recomputation():
    torch.distributed.init_process_group('gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        head = dict(DBOT['objectives']['feature']['head'], activation_checkpointing='selective')
        changes = dict(
            backbone=dict(DBOT['backbone'], activation_checkpointing='selective'),
            objectives=dict(feature=dict(DBOT['objectives']['feature'], head=head)),
        )
        model, sharded = (build(BOTH, depth=2, **changes) for _ in range(2))
        sharding.shard_trained(sharded, sharding.shard_options(None))
        sharding.shard_teachers(sharded, sharding.shard_options(None))
        torch.testing.assert_close(step(sharded), step(model), rtol=0, atol=0)
    finally:
        torch.distributed.destroy_process_group()


def test_precision__a_trial_on_the_meta_device_runs_without_autocast():
    """`mkd train` tries a step without values before it builds anything."""
    with torch.device('meta'):
        model = MODELS.build(dict(type='MaskedDistiller', precision=BOTH, **copy.deepcopy(DBOT)))
        model.begin_training(Progress(0, 1))
        assert model.loss(torch.empty(2, 3, 16, 16))['loss_feature'].is_meta


def test_precision__evaluation_of_the_student_stays_float32():
    plain, half = (build(precision, depth=2).eval() for precision in (None, BOTH))
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(plain.extract_feat(images), half.extract_feat(images))


@pytest.mark.parametrize(
    ('precision', 'message'),
    [
        (dict(residual='float16'), r"precision={residual: 'float16'}: use one of \['bfloat16'\], or leave it out"),
        (dict(teacher='fp16'), r"precision={teacher: 'fp16'}: use one of \['bfloat16', 'fp8'\], or leave it out"),
        (dict(teachers='fp8'), r"set_precision has no option \['teachers'\]. Did you mean \['teacher'\]"),
    ],
)
def test_precision__refuses_what_it_does_not_know(precision, message):
    with pytest.raises(ValueError, match=message):
        build(precision, depth=2)


def test_precision__refuses_what_the_device_or_the_networks_cannot_do(monkeypatch):
    for precision in (dict(residual='bfloat16'), dict(teacher='bfloat16')):
        with pytest.raises(ValueError, match='need mixed precision in bfloat16, .* Train with --amp'):
            step(build(precision, depth=2), amp=False)
    pixel = dict(teachers=dict(boot=dict(type='PixelTeacher')))
    pixel['objectives'] = dict(feature=dict(DBOT['objectives']['feature'], tap='output', region='hidden'))
    with pytest.raises(ValueError, match="{teacher: 'bfloat16'}: no teacher is a ViT of mkd_plugin. Leave it out"):
        build(dict(teacher='bfloat16'), depth=2, **pixel)

    def none(*args, **options):
        raise RuntimeError('only supported on H100\nmore')

    monkeypatch.setattr(torch, '_scaled_mm', none)
    with pytest.raises(
        ValueError, match=r'cpu has no float8 product for weights \(192, 64\) \(only supported on H100\). Use'
    ):
        build(dict(teacher='fp8'), depth=2)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation: False)
    with pytest.raises(ValueError, match='this GPU has no bfloat16. Remove precision'):
        build(dict(residual='bfloat16'), depth=2)
