"""The whole algorithm: given masks, lazy teachers, gradients, and incompatible components."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from helpers.networks import ARCH, DBOT, hidden_masks
from mmpretrain.structures import DataSample

from mkd_plugin.models.protocols import pixel_statistics
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import TokenMask

MIM = dict(type='ViTTeacher', arch=ARCH, patch_size=4, seed=5)
LINEAR = dict(type='LinearHead')
SYMMETRIC = dict(type='MaskTokenViT', arch=ARCH, img_size=16, patch_size=4)
FEATURE = DBOT['objectives']['feature']
PIXEL = dict(FEATURE, teacher='pixel', tap='output', region='hidden', loss=dict(type='MSELoss'))
RELATION = dict(
    teacher='mim', tap=('relation:-2', 'relation:-1'), student=('relation:-2', 'relation:-1'),
    loss=dict(type='SmoothL1Loss', beta=2.0), region='visible+cls',
)  # fmt: skip
METHODS = {
    'dbot': {},
    'dbot symmetric': dict(backbone=SYMMETRIC, objectives=dict(feature=dict(FEATURE, head=LINEAR, region='hidden'))),
    'dbot momentum': dict(teachers=dict(boot=dict(type='MomentumTeacher', momentum=0.9))),
    'mae': dict(teachers=dict(pixel=dict(type='PixelTeacher')), objectives=dict(pixel=PIXEL)),
    'dmae': dict(
        teachers=dict(pixel=dict(type='PixelTeacher'), mae=dict(MIM, sees='visible')),
        objectives=dict(
            pixel=dict(PIXEL, normalize=None),
            align=dict(
                teacher='mae', tap='block:1', student='block:1', head=dict(type='ProjectorHead'),
                loss=dict(type='L1Loss'), normalize=dict(type='L2Normalize'), normalize_prediction=True,
                region='visible+cls',
            ),
        ),
    ),
    'hybrid': dict(
        masking=dict(type='RedundancyMasking', teacher='mim', drop=0.3, at=(0, 1, 2)),
        teachers=dict(semantic=dict(MIM, seed=6), mim=MIM),
        objectives=dict(feature=dict(FEATURE, teacher='semantic', head=LINEAR, region='visible+cls'), relation=RELATION),
    ),
    'plain distillation': dict(
        masking=dict(type='NoMasking'), objectives=dict(feature=dict(FEATURE, head=LINEAR, region='all+cls'))
    ),
}  # fmt: skip


def given(hidden_BL):
    return [DataSample().set_mask(row) for row in hidden_BL]


def losses_of(results):
    return {name: value for name, value in results.items() if name.startswith('loss_')}


@pytest.mark.parametrize('method', METHODS.values(), ids=METHODS)
def test_loss__every_trainable_parameter_gets_a_gradient(build_distiller, images, method):
    """A parameter without a gradient would make DDP fail."""
    model = build_distiller(**method).train()
    losses = losses_of(model.loss(images))
    assert set(losses) == {f'loss_{name}' for name in model.objectives}
    sum(losses.values()).backward()
    without = [
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    if type(model.masking).__name__ == 'NoMasking':
        without = [name for name in without if name != 'backbone.mask_token']
    assert without == []


@pytest.mark.parametrize('method', METHODS.values(), ids=METHODS)
def test_loss__given_masks_reproduce_a_step(build_distiller, images, method):
    model = build_distiller(**method)
    drawn = []
    hook = model.masking.register_forward_hook(lambda *call: drawn.append(call[2]))
    first = model.loss(images)
    hook.remove()
    torch.manual_seed(99)
    again = model.loss(images, given(drawn[0].hidden_BL.view(-1, 4, 4)))  # 2-D or flat masks
    assert set(again) == set(first)
    rel = 1e-12 if model.backbone.sees_all else 0  # this student computes a weighted mean instead
    for name, value in losses_of(first).items():
        assert again[name].item() == pytest.approx(value.item(), rel=rel, abs=0), name


def test_loss__given_masks_reach_a_teacher_that_sees_visible_patches(build_distiller, images):
    align = dict(METHODS['dmae']['objectives']['align'])
    model = build_distiller(
        backbone=SYMMETRIC, teachers=dict(mae=dict(MIM, sees='visible')), objectives=dict(align=align)
    )
    drawn = []
    hook = model.masking.register_forward_hook(lambda *call: drawn.append(call[2]))
    first = model.loss(images)['loss_align'].item()
    hook.remove()
    assert model.loss(images, given(drawn[0].hidden_BL))['loss_align'].item() == pytest.approx(first, rel=1e-6)


def test_loss__masks_are_drawn_without_data_samples_that_have_one(build_distiller, images):
    model, losses = build_distiller(), []
    for samples in (None, [], [DataSample() for _ in range(3)]):
        torch.manual_seed(1)
        losses.append(model.loss(images, samples)['loss_feature'].item())
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize(
    ('masks', 'message'),
    [
        (torch.ones(3, 9), 'The data contain masks of 9 patches, but the student has 16'),
        (
            hidden_masks(visible=5),
            r"masks with \[5\] visible patches, but the student or a teacher needs the masking's 4 in every image",
        ),
        (torch.stack([torch.arange(16) < n for n in (12, 10, 12)]), r'masks with \[4, 6\] visible patches'),
    ],
)
def test_loss__given_masks_that_do_not_fit(build_distiller, images, masks, message):
    with pytest.raises(ValueError, match=message):
        build_distiller().loss(images, given(masks))


@pytest.mark.parametrize('method', METHODS.values(), ids=METHODS)
def test_loss__every_teacher_runs_once_a_step(build_distiller, images, method):
    method = copy.deepcopy(method)
    model = build_distiller(**method)
    ran, masks = Counter(), {}
    for name, teacher in model.teachers.items():

        def count(_, args, name=name):
            ran[name] += 1
            masks[name] = args[1]

        teacher.register_forward_pre_hook(count)
    for _ in range(2):
        model.loss(images)
    assert ran == dict.fromkeys(model.teachers, 2)
    if 'mae' in masks:
        assert masks['mae'].hidden_BL.sum(1).tolist() == [12] * 3


def test_loss__two_objectives_share_a_teacher(build_distiller, images):
    """It runs once, up to the highest tap, and each objective has the same loss as alone."""
    first, second = dict(FEATURE, tap='block:0'), dict(FEATURE, tap='block:1', head=LINEAR, region='visible')
    model = build_distiller(objectives=dict(first=first, second=second))
    blocks = Counter()
    for index, block in enumerate(model.teachers['boot'].network.layers):
        block.register_forward_hook(lambda *_, i=index: blocks.update([i]))
    samples = given(hidden_masks())
    both = losses_of(model.loss(images, samples))
    assert blocks == {0: 1, 1: 1}
    for name, cfg in (('first', first), ('second', second)):
        alone = build_distiller(objectives={name: cfg})
        state = model.state_dict()
        alone.load_state_dict({key: state[key] for key in alone.state_dict()}, strict=True)
        assert alone.loss(images, samples)[f'loss_{name}'].item() == pytest.approx(
            both[f'loss_{name}'].item(), rel=1e-12
        )


def test_loss__redundancy_masking_reads_the_teacher_that_the_objective_reads(build_distiller, images):
    """The mask comes from the full forward pass, although relations are compared on kept tokens only."""
    model = build_distiller(**METHODS['hybrid'])
    share = model.loss(images)['hidden_share'].item()
    assert share == 1 - round(16 * 0.7**3) / 16
    assert model.requests['mim'].taps == ('input:0', 'input:1', 'input:2', 'relation:-2', 'relation:-1')
    assert model.requests['semantic'].taps == ('block:-1',)


@pytest.mark.parametrize('wrap', [lambda x: x, lambda x: [x], lambda x: (x,)], ids=['tensor', 'list', 'tuple'])
def test_forward__takes_a_batch_or_a_list_of_one_view(build_distiller, images, wrap):
    model = build_distiller()
    samples = given(hidden_masks())
    wanted = model.loss(images, samples)['loss_feature']
    assert torch.equal(model(wrap(images), samples, mode='loss')['loss_feature'], wanted)
    assert torch.equal(model(wrap(images), mode='tensor'), model.backbone(images).tokens('output'))


def test_forward__more_than_one_view(build_distiller, images):
    with pytest.raises(ValueError, match='takes one view of each image, but the pipeline returns 2'):
        build_distiller().loss([images, images])


def test_forward__two_views_need_both(build_distiller, images):
    model = build_distiller(two_views=True)
    with pytest.raises(ValueError, match='two_views=True, but the pipeline gives one view of each image'):
        model(images, mode='loss')
    assert model(images, mode='tensor').shape == (3, 17, 32)
    assert 'loss_feature' in model([images, images], mode='loss')


def test_init_weights__teachers_copy_what_the_student_loaded(build_distiller, images, tmp_path):
    other = build_distiller().backbone
    torch.save(dict(state_dict=other.state_dict()), tmp_path / 'student.pth')
    backbone = dict(DBOT['backbone'], init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'student.pth')))
    model = build_distiller(backbone=backbone)
    model.init_weights()
    wanted = other(images).tokens('output')
    assert torch.equal(model.backbone(images).tokens('output'), wanted)
    assert torch.equal(model.teachers['boot'](images, None, ('output',)).tokens('output'), wanted)


def test_init_weights__draws_nothing_itself(build_distiller):
    """Weights are drawn in the constructor; mmengine then calls ``init_weights``."""
    model = build_distiller()
    before = copy.deepcopy(dict(model.named_parameters()))
    model.init_weights()
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


def test_reset_student__draws_student_and_heads_and_leaves_the_teacher(build_distiller):
    model = build_distiller(teachers=DBOT['teachers'])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.reset_student()
    for name, value in model.state_dict().items():
        fixed = name.startswith('teachers.') or name.endswith('pos_embed')
        assert torch.equal(value, before[name]) == fixed, name


def test_state_dict__round_trip_gives_the_same_loss(build_distiller, images):
    model = build_distiller()
    model.teachers['boot'].promote(model.backbone)
    model.reset_student()
    other = build_distiller()
    other.load_state_dict(model.state_dict(), strict=True)
    samples = given(hidden_masks())
    assert torch.equal(model.loss(images, samples)['loss_feature'], other.loss(images, samples)['loss_feature'])


def test_objective_name__with_loss_in_it_is_refused(build_distiller):
    """mmengine would add values that are only logged to the loss."""
    with pytest.raises(ValueError, match=r"\['pixel_loss'\]: mmengine sums every result with 'loss' in its name"):
        build_distiller(objectives=dict(pixel_loss=FEATURE))
    with pytest.raises(ValueError, match=r"\['colossal'\]: mmengine sums"):
        build_distiller(teachers=dict(colossal=DBOT['teachers']['boot']), objective=dict(teacher='colossal'))


def test_parse_losses__sums_the_objectives(build_distiller, images):
    model = build_distiller(**METHODS['dmae'])
    results = model.loss(images)
    total, logged = model.parse_losses(results)
    assert total.item() == pytest.approx(results['loss_pixel'].item() + results['loss_align'].item(), rel=1e-12)
    assert {'hidden_share', 'pixel_target_std', 'align_student_std'} <= set(logged)


BAD = {
    'no objective': (dict(objectives={}), 'objectives is empty: add at least one'),
    'a teacher that nothing reads': (
        dict(teachers=dict(DBOT['teachers'], clip=MIM)), r"Nothing reads the teachers \['clip'\]: name them in an objective"
    ),
    'masking reads an unknown teacher': (
        dict(masking=dict(type='RedundancyMasking', teacher='mim', at=(0,))),
        r"The masking reads the teacher 'mim', but there are only \['boot'\]",
    ),
    'masking reads a teacher of visible patches': (
        dict(METHODS['hybrid'], teachers=dict(semantic=MIM, mim=dict(MIM, sees='visible'))),
        "The masking reads the teacher 'mim', which must then see the whole image: sees='all'",
    ),
    'masking reads a block there is not': (
        dict(METHODS['hybrid'], masking=dict(type='RedundancyMasking', teacher='mim', at=(0, 3))),
        "Tap 'input:3' is out of range: the network has 3 blocks",
    ),
    'unknown masking': (dict(masking=dict(type='SpiralMasking')), "no component 'SpiralMasking'"),
    'misspelt option of a teacher': (
        dict(teachers=dict(boot=dict(type='BootstrappedTeacher', strat='student'))), r"Did you mean \['start'\]"
    ),
    'misspelt option of the student': (
        dict(backbone=dict(DBOT['backbone'], drop_path=0.1)), r"no option \['drop_path'\]. Did you mean \['drop_path_rate'\]"
    ),
    'a student without type': (dict(backbone=dict(arch='b')), "needs a 'type'"),
}  # fmt: skip


@pytest.mark.parametrize(('overrides', 'message'), BAD.values(), ids=BAD)
def test_masked_distiller__parts_that_do_not_fit(build_distiller, overrides, message):
    with pytest.raises(ValueError, match=message):
        build_distiller(**overrides)


@pytest.mark.parametrize('key', ['backbon', 'objective', 'target'])
def test_masked_distiller__misspelt_argument(key):
    with pytest.raises((TypeError, ValueError), match=key):
        MODELS.build(dict(type='MaskedDistiller', **copy.deepcopy(DBOT), **{key: {}}))


@pytest.mark.parametrize(
    ('preprocessor', 'mean', 'std'),
    [
        (dict(mean=[1.5, 2, 3], std=[4, 5, 6.5]), (1.5, 2, 3), (4, 5, 6.5)),
        (dict(mean=[2], std=[3]), (2, 2, 2), (3, 3, 3)),
        ({}, (0, 0, 0), (1, 1, 1)),
    ],
)
def test_pixel_statistics__of_mmpretrains_preprocessor(build_distiller, preprocessor, mean, std):
    model = build_distiller(data_preprocessor=preprocessor)
    assert pixel_statistics(model.data_preprocessor, 3) == (mean, std)


def test_data_preprocessor__its_statistics_reach_the_teacher(build_distiller):
    """Pixels of 0 … 255 reach the teacher normalised with ImageNet's statistics."""
    statistics = dict(mean=[100.0, 110.0, 120.0], std=[50.0, 60.0, 70.0])
    model = build_distiller(teachers=dict(boot=MIM), data_preprocessor=statistics)
    raw = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    batch = model.data_preprocessor(dict(inputs=[raw], data_samples=None))['inputs'][0]
    wanted = (raw[:, 1].double() - 116.28) / 57.12
    torch.testing.assert_close(model.teachers['boot'].view(batch.double())[:, 1], wanted, rtol=1e-6, atol=1e-5)


def test_extract_feat__ignores_masks(build_distiller, images):
    model = build_distiller()
    assert torch.equal(model.extract_feat(images), model.backbone(images).tokens('output'))
    assert model.extract_feat(images).shape == (3, 17, 32)
    assert model.backbone(images, TokenMask.from_hidden(hidden_masks(), 4)).tokens('output').shape == (3, 5, 32)
