"""Ten needs of future methods, each met by a component alone. The test doubles are what a user would write."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.doubles import registered
from helpers.networks import VIT, scatter_weights
from torch import nn
from torch.nn import functional as F

from mkd_plugin.models.protocols import Balance, Head, Masking, Progress, Teacher
from mkd_plugin.models.teachers import ViTTeacher
from mkd_plugin.models.vit import sincos_positions
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import Region, TapSpec, TokenFeatures, TokenMask, Tokens, take

ARCH = VIT['arch']
PLAIN = dict(
    teacher='frozen',
    tap='output',
    student='output',
    head=dict(type='LinearHead'),
    loss=dict(type='MSELoss'),
    region='all',
)
FROZEN = dict(type='ViTTeacher', arch=ARCH, patch_size=4, seed=1, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3)


@pytest.fixture(autouse=True)
def doubles():
    """Register the test doubles of this file for one test."""
    with registered(
        WeightedSum, RunningMean, RungsHead, HardestTeacher, RowDivergence, CrossAttention, CoarseTeacher, TwoMasks,
        PeriodicCopy,
    ):  # fmt: skip
        yield


def build(objectives, *, student='PlainViT', masking=None, teachers=None, **more):
    """A tiny distiller in float64 with scattered weights."""
    teachers = teachers or dict(frozen=FROZEN)
    cfg = dict(backbone=dict(type=student, **VIT), masking=masking or dict(type='NoMasking'), teachers=teachers)
    model = MODELS.build(dict(type='MaskedDistiller', objectives=objectives, **cfg, **more)).double()
    model.begin_training(Progress(0, 10))
    return scatter_weights(model)


# G1: several losses on one head.
class WeightedSum(nn.Module):
    """Half cosine, half smooth L1, per token."""

    def forward(self, prediction_BRD, target_BRD):
        cosine_BR = 1 - F.cosine_similarity(prediction_BRD, target_BRD, dim=-1)
        return cosine_BR / 2 + F.smooth_l1_loss(prediction_BRD, target_BRD, reduction='none').mean(-1) / 2


def test_g1__several_losses_on_one_head(images):
    model = build(dict(both=dict(PLAIN, loss=dict(type='WeightedSum'))))
    alone = {name: build(dict(one=dict(PLAIN, loss=cfg))) for name, cfg in
             dict(cos=dict(type='CosineLoss'), l1=dict(type='SmoothL1Loss')).items()}  # fmt: skip
    weights = model.state_dict()
    for other in alone.values():
        other.load_state_dict({key.replace('both', 'one'): value for key, value in weights.items()})
    parts = [other.loss(images)['loss_one'].item() for other in alone.values()]
    assert model.loss(images)['loss_both'].item() == pytest.approx(sum(parts) / 2, rel=1e-9)


# G2: a region of only cls.
def test_g2__cls_alone(images):
    model = build(dict(summary=dict(PLAIN, region='cls'), patches=dict(PLAIN, region='all')))
    found = model.loss(images)['loss_summary'].item()
    target = model.teachers['frozen'](images, None, ('output',)).tokens('output')[:, 0]
    predicted = model.objectives['summary'].heads[0].linear(model.backbone(images).tokens('output')[:, 0])
    assert found == pytest.approx(F.mse_loss(predicted, target).item(), rel=1e-12)
    alone = build(dict(summary=dict(PLAIN, region='cls')))  # the teacher's last block computes one token
    features = alone.teachers['frozen'](
        images, None, ('output',), Region(None, True).tokens(TokenMask(torch.zeros(3, 16)))
    )
    assert features.taps['output'].x_BND.shape[1] == 1 and alone.loss(images)['loss_summary'] > 0


# G3: N with statistics.
class RunningMean(nn.Module):
    """Standardises with the statistics of the first batch, stored in buffers."""

    def __init__(self, *, width):
        super().__init__()
        self.register_buffer('mean', torch.zeros(width))
        self.register_buffer('batches', torch.zeros((), dtype=torch.long))

    def forward(self, target):
        if self.training:
            self.mean += (target.mean((0, 1)) - self.mean) / (self.batches + 1)
            self.batches += 1
        return target - self.mean


def test_g3__normalization_with_state_is_told_its_width_and_saved(images):
    model = build(dict(feature=dict(PLAIN, normalize=dict(type='RunningMean'))))
    model.loss(images)
    target = model.teachers['frozen'](images, None, ('output',)).tokens('output')[:, 1:]
    state = model.state_dict()
    torch.testing.assert_close(state['objectives.feature.normalizations.0.mean'], target.mean((0, 1)))
    assert model.eval().state_dict()['objectives.feature.normalizations.0.batches'] == 1


# G4: a head that reads several taps.
class RungsHead(Head):
    """Sums one projection per tap of the student."""

    many_taps = True

    def __init__(self, *, in_width, out_width, grid, taps):
        super().__init__(in_width=in_width, out_width=out_width, grid=grid)
        self.rungs = nn.ModuleList(nn.Linear(in_width, out_width) for _ in range(taps))

    def forward(self, features, taps, region):
        return sum(rung(features.select(tap, region)) for rung, tap in zip(self.rungs, taps, strict=True))


def test_g4__one_head_reads_several_taps(images):
    taps = ['block:0', 'block:1', 'output']
    model = build(dict(ladder=dict(PLAIN, student=taps, head=dict(type='RungsHead', taps=3))))
    features = model.backbone(images, taps=taps)
    head = model.objectives['ladder'].heads[0]
    predicted = sum(rung(features.tokens(tap)[:, 1:]) for rung, tap in zip(head.rungs, taps, strict=True))
    target = model.teachers['frozen'](images, None, ('output',)).tokens('output')[:, 1:]
    assert model.loss(images)['loss_ladder'].item() == pytest.approx(F.mse_loss(predicted, target).item(), rel=1e-12)
    with pytest.raises(ValueError, match='RungsHead reads all .* for one tap of the teacher'):
        build(dict(ladder=dict(PLAIN, tap=taps, student=taps, head=dict(type='RungsHead', taps=3))))


# G5: losses per image that depend on each other.
class HardestTeacher(Balance):
    """Keeps, for each image, the objective with the largest loss."""

    def forward(self, terms):
        per_image = torch.stack([term.per_image() for term in terms.values()])
        kept = per_image.detach() == per_image.detach().amax(0)
        return {name: (loss * keep).mean() for name, loss, keep in zip(terms, per_image, kept, strict=True)}


def test_g5__balance_compares_losses_per_image(images):
    objectives = dict(a=PLAIN, b=dict(PLAIN, loss=dict(type='L1Loss')))
    model = build(objectives, balance=dict(type='HardestTeacher'))
    found = model.loss(images)
    region = Region('all', False).tokens(TokenMask(torch.zeros(3, 16, dtype=torch.bool)))
    target = model.teachers['frozen'](images, None, ('output',)).select('output', region)
    tokens = model.backbone(images)
    errors = [term.heads[0](tokens, ('output',), region) - target for term in model.objectives.values()]
    losses = torch.stack([errors[0].square().mean((1, 2)), errors[1].abs().mean((1, 2))])
    wanted = torch.where(losses == losses.amax(0), losses, 0.0).mean(1)
    assert [found['loss_a'].item(), found['loss_b'].item()] == pytest.approx(wanted.tolist(), rel=1e-12)


# G6: kinds of relations, and a divergence between their rows.
class RowDivergence(nn.Module):
    """KL(teacher ‖ student) between the softmax of relation rows, per query."""

    def forward(self, prediction_BHRR, target_BHRR):
        return F.kl_div(
            prediction_BHRR.log_softmax(-1), target_BHRR.log_softmax(-1), reduction='none', log_target=True
        ).sum(-1)


@pytest.mark.parametrize('tap', ['value:-1', 'logit:-1'])
def test_g6__relations_of_values(images, tap):
    loss = dict(type='RowDivergence')
    model = build(dict(relation=dict(PLAIN, tap=tap, student=tap, head=None, loss=loss, region='all+cls')))

    def rows(network):
        batch, length, _ = network(images, taps=('qkv:-1',)).tokens('qkv:-1').shape
        q, k, v = network(images, taps=('qkv:-1',)).tokens('qkv:-1').view(batch, length, 3, 4, 8).permute(2, 0, 3, 1, 4)
        left, right = (v, v) if tap.startswith('value') else (q, k)
        return (left @ right.transpose(-1, -2) * 8**-0.5).softmax(-1)

    p, q = rows(model.teachers['frozen'].network), rows(model.backbone)
    assert model.loss(images)['loss_relation'].item() == pytest.approx(
        (p * (p / q).log()).sum(-1).mean().item(), rel=1e-9
    )


# G7: a cross-attention head.
class CrossAttention(Head):
    """Queries at every position of the region attend to the visible tokens (CAE v2, CrossMAE)."""

    reaches_hidden = True

    def __init__(self, *, in_width, out_width, grid):
        super().__init__(in_width=in_width, out_width=out_width, grid=grid)
        self.register_buffer('pos_embed', sincos_positions(grid, in_width))
        self.attend = nn.MultiheadAttention(in_width, 4, batch_first=True)
        self.predict = nn.Linear(in_width, out_width)

    def forward(self, features, taps, region):
        keys = features.tokens(taps[0])
        queries = take(self.pos_embed.expand(len(keys), -1, -1), region.rows(num_prefix=1))
        return self.predict(self.attend(queries, keys, keys)[0])


@pytest.mark.parametrize('region', ['hidden', 'all+cls'])
def test_g7__cross_attention_predicts_what_the_student_did_not_see(images, region):
    masking = dict(type='RandomMasking', ratio=0.75)
    objective = dict(PLAIN, head=dict(type='CrossAttention'), region=region)
    model = build(dict(feature=objective), student='VisibleViT', masking=masking)
    torch.manual_seed(5)
    loss = model.loss(images)['loss_feature']
    loss.backward()
    head = model.objectives['feature'].heads[0]
    assert head.attend.in_proj_weight.grad.abs().sum() > 0

    torch.manual_seed(5)
    mask = model.masking(images, None)
    rows = mask.ids_hide_BM + 1 if region == 'hidden' else torch.arange(17).expand(3, -1)
    seen = model.backbone(images, mask).tokens('output')
    predicted = head.predict(head.attend(head.pos_embed[0][rows], seen, seen)[0])
    target = take(model.teachers['frozen'](images, None, ('output',)).tokens('output'), rows)
    assert loss.item() == pytest.approx(F.mse_loss(predicted, target).item(), rel=1e-9)


# G8: a teacher with another grid.
class CoarseTeacher(ViTTeacher):
    """A teacher with half the grid, whose features are interpolated to the student's."""

    def _check_against(self, student):
        self.grid = student.grid

    def forward(self, images_BCHW, mask, taps, region=None):
        features = super().forward(images_BCHW, None, taps)
        values = {}
        for tap in taps:
            tokens = features.tokens(tap)[:, features.num_prefix :]
            maps = tokens.transpose(1, 2).unflatten(2, self.network.grid)
            values[tap] = Tokens(F.interpolate(maps, self.grid, mode='bilinear').flatten(2).transpose(1, 2))
        return TokenFeatures(values, num_prefix=0)

    def tap_spec(self, name):
        return replace(super().tap_spec(name), cls=False)


def test_g8__teacher_of_another_grid(images):
    coarse = dict(FROZEN, type='CoarseTeacher', img_size=8)
    model = build(dict(feature=PLAIN), teachers=dict(frozen=coarse))
    teacher = model.teachers['frozen']
    tokens = teacher.network(teacher.view(images)).tokens('output')[:, 1:]
    target = F.interpolate(tokens.mT.unflatten(2, (2, 2)), (4, 4), mode='bilinear').flatten(2).mT
    predicted = model.objectives['feature'].heads[0].linear(model.backbone(images).tokens('output')[:, 1:])
    assert model.loss(images)['loss_feature'].item() == pytest.approx(F.mse_loss(predicted, target).item(), rel=1e-9)


# G9: several masks per image, one pass of the teacher.
class TwoMasks(Masking):
    """A mask and its complement for every image."""

    per_image = 2

    def __init__(self, *, student):
        super().__init__(student=student)
        self.num_visible = self.num_patches // 2

    def forward(self, images_BCHW, teacher_features):
        order_BL = torch.rand(len(images_BCHW), self.num_patches).argsort(1)
        kept_BV = torch.stack(order_BL.chunk(2, dim=1), 1).flatten(0, 1)
        return replace(TokenMask.from_kept(kept_BV, self.num_patches), per_image=2)


@pytest.mark.parametrize('sees', ['all', 'visible'])
def test_g9__several_masks_share_one_teacher_pass(images, sees):
    region = 'hidden+cls' if sees == 'all' else 'visible+cls'
    head = dict(type='TransformerDecoder', depth=1, width=16, num_heads=2)
    objective = dict(PLAIN, head=head, region=region)
    teachers = dict(frozen=dict(FROZEN, sees=sees))
    model = build(dict(feature=objective), student='VisibleViT', masking=dict(type='TwoMasks'), teachers=teachers)
    seen = []
    model.teachers['frozen'].register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    torch.manual_seed(5)
    found = model.loss(images)['loss_feature']
    assert seen == [3 if sees == 'all' else 6]

    torch.manual_seed(5)
    mask = model.masking(images, None)
    terms = []
    for i in range(6):
        one = TokenMask.from_kept(mask.ids_keep_BV[i : i + 1], 16)
        image = images[i // 2 : i // 2 + 1]
        teacher = model.teachers['frozen'](image, one, ('output',))
        terms.append(model.objectives['feature'](teacher, model.backbone(image, one), one)[0].mean())
    assert found.item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-12)


# G10: a scheduled weight, and a teacher that copies the student periodically.
class PeriodicCopy(Teacher):
    """Copies the student every ``period`` steps (DINOv3's Gram teacher)."""

    changes = True

    def __init__(self, *, student, period):
        super().__init__(student=student)
        self.period, self.width = period, student.network.arch.width
        self.register_buffer('cls_token', torch.zeros(1, 1, self.width))

    def tap_spec(self, name):
        return TapSpec('tokens', self.width)

    def after_step(self, student, progress):
        if progress.step % self.period == 0:
            self.cls_token.copy_(student.cls_token.detach())

    def forward(self, images_BCHW, mask, taps, region=None):
        return TokenFeatures({tap: Tokens(self.cls_token.expand(len(images_BCHW), 17, -1)) for tap in taps}, 1)


def test_g10__scheduled_weight_and_periodic_copy(images):
    weight = dict(type='LinearRamp', start=0.0, end=2.0, steps=10)
    model = build(dict(gram=dict(PLAIN, weight=weight)), teachers=dict(frozen=dict(type='PeriodicCopy', period=3)))
    assert model.loss(images)['loss_gram'] == 0
    for step in range(1, 5):
        model.after_step(Progress(step, 100))
        assert model.objectives['gram'].weight == pytest.approx(step / 5)
        scatter_weights(model.backbone)
    assert not torch.equal(model.teachers['frozen'].cls_token, model.backbone.cls_token)
    model.after_step(Progress(6, 100))
    assert torch.equal(model.teachers['frozen'].cls_token, model.backbone.cls_token)
    model.begin_training(Progress(10, 100))  # resumed: the weight depends on the position
    assert model.objectives['gram'].weight == 2.0
