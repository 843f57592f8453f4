"""Objectives: parts that do not fit together, values that are logged, precision, and new heads."""

from __future__ import annotations

import pytest
import torch
from helpers.doubles import registered
from helpers.networks import hidden_masks
from helpers.objectives import SYMMETRIC, TOKENIZER, VIT_TEACHER, given, smooth_l1, student_tokens
from torch import nn

from mkd_plugin.models.heads import LadderHead, LinearHead
from mkd_plugin.models.objective import at_least_float32, spread
from mkd_plugin.models.protocols import Head
from mkd_plugin.models.vit.block import BEIT_INIT
from mkd_plugin.structures import Region, TokenMask

DECODER = dict(type='TransformerDecoder', depth=2, width=16, num_heads=2)


@pytest.mark.filterwarnings('ignore:Using a target size')
def test_objective__class_numbers_need_cross_entropy(build_distiller, images):
    options = dict(TOKENIZER['objective'], region='hidden', loss=dict(type='MSELoss'))
    with pytest.raises(ValueError, match='gives class indices, which MSELoss does not support'):
        build_distiller(teachers=TOKENIZER['teachers'], objective=options).loss(images)


def test_objective__cross_entropy_needs_class_numbers(build_distiller, images):
    with pytest.raises(ValueError, match='gives features, which TokenCrossEntropy does not support'):
        build_distiller(objective=dict(loss=dict(type='TokenCrossEntropy'))).loss(images)


def test_forward__watches_the_spread_of_targets_and_features(build_distiller, images):
    """The standard deviation over tokens, averaged over channels; 0 would be a collapse."""
    model, hidden_BL = build_distiller(objective=dict(normalize=None)), hidden_masks()
    counts = torch.cat([torch.ones(3, 1, dtype=torch.bool), hidden_BL], dim=1)
    target = model.teachers['boot'].network(images, taps=('block:-1',)).tokens('block:-1')[counts]
    tokens = student_tokens(model, images, hidden_BL).flatten(0, 1)
    results = model.loss(images, given(hidden_BL))
    assert results['hidden_share'].item() == 0.75
    for key, values in (('feature_target_std', target), ('feature_student_std', tokens)):
        centred = values - values.mean(0)
        wanted = centred.square().mean(0).sqrt().mean().item()
        assert results[key].item() == pytest.approx(wanted, rel=1e-6)
        assert not results[key].requires_grad


@pytest.mark.parametrize(('given_type', 'wanted'), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_at_least_float32__promotes_half_precision_only(given_type, wanted):
    assert at_least_float32(torch.zeros(1, dtype=given_type)).dtype == wanted


def test_forward__loss_is_float32_under_autocast(build_distiller, images):
    model, samples = build_distiller().float(), given(hidden_masks())
    with torch.autocast('cpu', torch.bfloat16):
        loss = model.loss(images.float(), samples)['loss_feature']
    assert loss.dtype == torch.float32
    exact = model.loss(images.float(), samples)['loss_feature'].item()
    assert loss.item() == pytest.approx(exact, rel=0.01)


def test_spread__of_one_token_is_0():
    assert spread(torch.ones(1, 1, 4)) == 0


BAD = {
    'head of another width': (
        dict(head=dict(DECODER, out_width=31)),
        r"predicts out_width=31, but 'block:-1' of the teacher 'boot' has 32 channels. Remove out_width",
    ),
    'unknown tap': (dict(tap='blok:-1'), "Unknown tap 'blok:-1'"),
    'unknown tap of the student': (dict(student='block:3'), "Tap 'block:3' is out of range: the network has 3 blocks"),
    'misspelt key': (dict(regoin='hidden'), r"Objective has no option \['regoin'\]. Did you mean \['region'\]"),
    'misspelt option of a head': (dict(head=dict(DECODER, heads=4)), r"TransformerDecoder has no option \['heads'\]"),
    'unknown head': (dict(head=dict(type='Decoder')), "no component 'Decoder'"),
    'unknown region': (dict(region='masked'), "region='masked': use one of 'hidden'"),
    'missing teacher': (dict(teacher='clip'), r"teacher='clip': there is no such teacher. Use one of \['boot'\]"),
    'hidden region without a head that reaches it': (
        dict(head=dict(type='LinearHead')),
        r"region='hidden\+cls': VisibleViT shows visible patches only and LinearHead cannot predict the others",
    ),
    'all without a head that reaches hidden ones': (
        dict(head=None, region='all'), 'NoHead cannot predict the others. Use a TransformerDecoder'
    ),
    'relation against tokens': (
        dict(tap='relation:-1', region='visible'),
        "'relation:-1' of the teacher is relation, but 'output' of the student is tokens",
    ),
    'relation with a head': (
        dict(tap='relation:0', student='relation:0', head=dict(type='LinearHead'), region='visible'),
        "LinearHead accepts tokens, but 'relation:0' is relation",
    ),
    'no tap': (dict(tap=[]), 'tap and student: name at least one tap of each'),
    'no tap for a head of many': (
        dict(student=[], head=dict(type='LadderHead'), region='visible'), 'name at least one tap of each'
    ),
    'weight that is no ramp': (dict(weight=dict(type='MSELoss')), 'give a number, or the config of a ramp'),
    'no group': (dict(head=dict(type='ConvDecoder', groups=0), region='hidden'), 'groups=0: use at least one layer'),
    'no block': (dict(head=dict(type='TargetPredictor', blocks=0), region='hidden'), 'blocks=0: it must be at least 1'),
    'more taps of the teacher': (dict(tap=('block:0', 'block:1')), 'use the same number of taps for both'),
    'negative weight': (dict(weight=-1.0), 'weight=-1.0: every value must be at or above 0'),
    'reduction': (dict(loss=dict(type='L1Loss', reduction='sum')), 'remove reduction'),
    'unknown loss': (dict(loss=dict(type='SmothL1Loss')), "no component 'SmothL1Loss'"),
    'prediction normalised by nothing': (
        dict(normalize=None, normalize_prediction=True), 'normalize_prediction=True needs normalize'
    ),
}  # fmt: skip


@pytest.mark.parametrize(('options', 'message'), BAD.values(), ids=BAD)
def test_objective__parts_that_do_not_fit(build_distiller, options, message):
    with pytest.raises(ValueError, match=message) as error:
        build_distiller(objective=options)
    assert str(error.value).startswith("Objective 'feature': ")


@pytest.mark.parametrize(
    ('base', 'teachers', 'options', 'message'),
    [
        ('mae', dict(pixel=dict(type='PixelTeacher')), dict(region='hidden+cls'),
         "The teacher 'pixel' has no cls token: use region='hidden' without"),
        ('mae', dict(pixel=dict(type='PixelTeacher')), dict(tap='block:-1'), "PixelTeacher has only the tap 'output'"),
        ('mae', dict(pixel=dict(VIT_TEACHER, sees='visible')), {},
         "region='hidden': the teacher 'pixel' sees visible patches only. Use 'visible'"),
        ('mae', dict(pixel=dict(VIT_TEACHER, sees='visible')), dict(region='all+cls'), 'sees visible patches only'),
        ('dbot', dict(boot=VIT_TEACHER), dict(head=None, region='visible'),
         'the student has 32 and the target 24. Add a head'),
        ('dbot', dict(boot=VIT_TEACHER), dict(tap='relation:0', student='relation:0', head=None, region='visible'),
         '.for relations: attention heads., but the student has 4 and the target 2'),
        ('dbot', dict(boot=VIT_TEACHER), dict(tap='block:2'), "Tap 'block:2' is out of range: the network has 2 blocks"),
    ],
)  # fmt: skip
def test_objective__teachers_that_do_not_fit(build_distiller, base, teachers, options, message):
    with pytest.raises(ValueError, match=message):
        build_distiller(base, teachers=teachers, objective=options)


def test_objective__relation_against_tokens_without_a_head(build_distiller):
    with pytest.raises(ValueError, match="of the teacher is relation, but 'output' of the student is tokens"):
        build_distiller(objective=dict(tap='relation:-1', head=None, region='visible'))


def test_objective__region_that_holds_no_token(build_distiller):
    with pytest.raises(ValueError, match=r"region='hidden\+cls' is empty: NoMasking hides nothing. Use 'all'"):
        build_distiller(masking=dict(type='NoMasking'))


@pytest.mark.parametrize('region', ['all+cls', 'visible'])
def test_objective__linear_head_reaches_all_without_masking(build_distiller, images, region):
    """Plain feature distillation."""
    model = build_distiller(
        masking=dict(type='NoMasking'), objective=dict(head=dict(type='LinearHead'), region=region, normalize=None)
    )
    first, linear = (0 if '+cls' in region else 1), model.objectives['feature'].heads[0].linear
    target = model.teachers['boot'].network(images, taps=('block:-1',)).tokens('block:-1')[:, first:]
    tokens = model.backbone(images).tokens('output')[:, first:] @ linear.weight.T + linear.bias
    found = model.loss(images)['loss_feature'].item()
    assert found == pytest.approx(smooth_l1(tokens - target, 2.0).mean().item(), rel=1e-12)


def test_objective__loss_without_a_type(build_distiller):
    with pytest.raises(ValueError, match="needs a 'type'"):
        build_distiller(objective=dict(loss=dict(beta=2.0)))


def test_objective__in_width_of_a_head_is_checked(build_distiller):
    with pytest.raises(ValueError, match='in_width'):
        build_distiller(objective=dict(head=dict(DECODER, in_width=31)))


def test_objective__neck_head_takes_a_student_of_full_length(build_distiller, images):
    neck = dict(
        type='mmpretrain.MAEPretrainDecoder', patch_size=4, num_patches=16, embed_dim=32, decoder_embed_dim=16,
        decoder_depth=1, decoder_num_heads=2,
    )  # fmt: skip
    model = build_distiller('mae', backbone=SYMMETRIC, objective=dict(head=dict(type='NeckHead', neck=neck)))
    (objective,) = model.objectives.values()
    hidden_BL = hidden_masks()
    mask = TokenMask.from_hidden(hidden_BL, 4)
    tokens = model.backbone(images, mask).tokens('output')
    in_order = torch.arange(16).expand(len(images), -1)
    wanted = objective.heads[0].neck(tokens, in_order)[hidden_BL].view(len(images), 12, -1)
    found = objective.heads[0](model.backbone(images, mask), ('output',), Region('hidden', False).tokens(mask))
    torch.testing.assert_close(found, wanted)


def test_reset_heads__draws_every_head_anew(build_distiller):
    options = dict(tap=('block:0', 'block:2'), student=('block:1', 'output'))
    objective = build_distiller(objective=options).objectives['feature']
    before = [nn.utils.parameters_to_vector(head.parameters()) for head in objective.heads]
    objective.reset_heads()
    for old, head in zip(before, objective.heads, strict=True):
        assert not torch.equal(old, nn.utils.parameters_to_vector(head.parameters()))
        assert not head.predict.bias.any()


def test_objective__target_predictor_needs_a_student_of_visible_patches(build_distiller):
    head = dict(type='TargetPredictor', depth=1, width=16, num_heads=2)
    masking = dict(type='MultiBlockMasking', min_visible=2)
    options = dict(masking=masking, objective=dict(head=head, region='targets'))
    build_distiller(**options)
    with pytest.raises(ValueError, match='TargetPredictor needs a student of visible patches only. Use a VisibleViT'):
        build_distiller(**options, backbone=SYMMETRIC)


class OwnLinear(LinearHead):
    """A head with an option of its own."""

    def __init__(self, *, extra=1, **options):
        super().__init__(**options)


class OwnLadder(LadderHead):
    """Likewise, of a head that reads several taps."""

    def __init__(self, *, extra=1, **options):
        super().__init__(**options)


class OwnHead(Head):
    """A head that does not say how its weights are drawn anew."""

    def __init__(self, **options):
        super().__init__(**options)
        self.first = nn.Sequential(nn.Linear(self.in_width, 8), nn.GELU())
        self.last = nn.Linear(8, self.out_width)

    def forward(self, features, taps, region):
        return self.last(self.first(features.select(taps[0], region)))


def test_objective__own_heads_get_what_their_parents_take(build_distiller):
    options = dict(backbone=SYMMETRIC, objective=dict(head=dict(type='OwnLinear'), region='all'))
    with registered(OwnLinear, OwnLadder):
        head = build_distiller(**options).objectives['feature'].heads[0]
        assert head.initialization is BEIT_INIT
        options['objective'] = dict(head=dict(type='OwnLadder'), student=['block:0', 'output'], region='all')
        assert len(build_distiller(**options).objectives['feature'].heads[0].layers) == 2


def test_reset_heads__draws_own_heads_and_prototypes_anew(build_distiller):
    options = dict(head=dict(type='OwnHead'), loss=dict(type='PrototypeCrossEntropy', prototypes=4), region='cls')
    with registered(OwnHead):
        objective = build_distiller(objective=options).objectives['feature']
    before = {name: parameter.clone() for name, parameter in objective.named_parameters()}
    objective.reset_heads()
    assert len(before) == 5
    assert not any(torch.equal(before[name], parameter) for name, parameter in objective.named_parameters())
    assert objective.loss.prototypes.abs().max() <= 32**-0.5
