"""Each method's loss against an explicit computation in float64, on given masks."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.networks import ARCH, hidden_masks
from helpers.objectives import SYMMETRIC, TOKENIZER, VIT_TEACHER, given, smooth_l1, student_tokens
from torch.nn import functional as F

from mkd_plugin.registry import MODELS
from mkd_plugin.structures import Region, TokenMask

RAGGED_BL = torch.stack([torch.arange(16) < count for count in (3, 11, 6)])


def predictions(model, images, hidden_BL):
    """Compute the decoder's predictions of cls and every patch."""
    mask = TokenMask.from_hidden(hidden_BL, int((~hidden_BL[0]).sum()))
    (objective,) = model.objectives.values()
    student = model.backbone(images, mask, taps=objective.student_taps)
    return objective.heads[0](student, objective.student_taps, Region('all', True).tokens(mask))


def unbiased(x, eps=1e-6):
    """dBOT's standardisation."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().sum(-1, keepdim=True) / (x.shape[-1] - 1) + eps).sqrt()


def test_loss__dbot(build_distiller, images):
    """Smooth L1 (beta 2) to the standardised last block without norm, over hidden tokens and cls."""
    model, hidden_BL = build_distiller(), hidden_masks()
    teacher = model.teachers['boot'].network
    target = teacher.embed(images, None)
    for block in teacher.layers:
        target, _ = block(target)
    error = smooth_l1(predictions(model, images, hidden_BL) - unbiased(target), beta=2.0).mean(-1)
    counts = torch.cat([torch.ones(3, 1, dtype=torch.bool), hidden_BL], dim=1)
    found = model.loss(images, given(hidden_BL))['loss_feature']
    assert found.item() == pytest.approx(error[counts].mean().item(), rel=1e-12)


@pytest.mark.parametrize('norm_pix', [True, False])
def test_loss__mae_equals_mmpretrains(build_distiller, images, norm_pix):
    """Against mmpretrain's complete MAE with the same weights; both draw their mask from the same noise."""
    ours = build_distiller('mae', objective={} if norm_pix else dict(normalize=None))
    arch = dict(embed_dims=32, num_layers=3, num_heads=4, feedforward_channels=128)
    neck = dict(patch_size=4, num_patches=16, embed_dim=32, decoder_embed_dim=16, decoder_depth=2, decoder_num_heads=2)
    head = dict(norm_pix=norm_pix, patch_size=4, loss=dict(type='PixelReconstructionLoss', criterion='L2'))
    theirs = MODELS.build(dict(
        type='mmpretrain.MAE',
        backbone=dict(type='MAEViT', arch=arch, img_size=16, patch_size=4, mask_ratio=0.75),
        neck=dict(type='MAEPretrainDecoder', **neck),
        head=dict(type='MAEPretrainHead', **head),
    )).double()  # fmt: skip
    theirs.backbone.load_state_dict(ours.backbone.state_dict(), strict=True)
    names = dict(embed='decoder_embed', layers='decoder_blocks', norm='ln1', predict='decoder_pred')
    names['pos_embed'] = 'decoder_pos_embed'
    state = {}
    for name, value in ours.objectives['pixel'].heads[0].state_dict().items():
        first, *rest = name.split('.')
        state['.'.join([names.get(first, first), *rest])] = value
    theirs.neck.load_state_dict(state, strict=True)
    losses = []
    for model, key in ((ours, 'loss_pixel'), (theirs, 'loss')):
        torch.manual_seed(7)
        losses.append(model.loss(images, None)[key].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


@pytest.mark.parametrize('normalize', [True, False], ids=['reference code', 'paper'])
def test_loss__dmae(build_distiller, images, normalize):
    """L1 between projected student and teacher blocks, both on the visible tokens with cls, both of unit length."""
    model = build_distiller(
        teachers=dict(mae=dict(VIT_TEACHER, sees='visible')),
        objectives=dict(align=dict(
            teacher='mae', tap='block:0', student='block:1', head=dict(type='ProjectorHead'), loss=dict(type='L1Loss'),
            normalize=dict(type='L2Normalize') if normalize else None, normalize_prediction=normalize,
            region='visible+cls',
        )),
    )  # fmt: skip
    hidden_BL = hidden_masks()
    teacher, (first, _, second) = model.teachers['mae'], model.objectives['align'].heads[0].layers
    scale = torch.tensor([1 / 58.395, 1 / 57.12, 1 / 57.375], dtype=torch.float64).view(3, 1, 1)
    shift = torch.tensor([-123.675 / 58.395, -116.28 / 57.12, -103.53 / 57.375], dtype=torch.float64).view(3, 1, 1)
    tokens = teacher.network.embed(images * scale + shift, None)  # the student's pixels are not normalised
    rows = [torch.cat([one[:1], one[1:][~hidden]]) for one, hidden in zip(tokens, hidden_BL, strict=True)]
    target, _ = teacher.network.layers[0](torch.stack(rows))
    prediction = second(F.gelu(first(student_tokens(model, images, hidden_BL, 'block:1'))))
    if normalize:
        target, prediction = (x / x.square().sum(-1, keepdim=True).sqrt() for x in (target, prediction))
    wanted = (prediction - target).abs().mean().item()
    assert model.loss(images, given(hidden_BL))['loss_align'].item() == pytest.approx(
        wanted, rel=1e-6
    )  # scale is float32


@pytest.mark.parametrize('region', ['visible+cls', 'visible'])
def test_loss__hybrid_distills_relations(build_distiller, images, region):
    """Q·Kᵀ of two blocks each, at the rows and columns of kept tokens; the teacher attends to the full image."""
    teacher = dict(type='ViTTeacher', arch=ARCH, patch_size=4, seed=5, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3)
    taps = ('relation:-2', 'relation:-1')
    model = build_distiller(
        masking=dict(type='RandomMasking', num_visible=5),
        teachers=dict(mim=teacher),
        objectives=dict(relation=dict(
            teacher='mim', tap=taps, student=taps, loss=dict(type='SmoothL1Loss', beta=2.0), region=region, weight=0.5,
        )),
    )  # fmt: skip
    hidden_BL = hidden_masks(visible=5)

    def relation(network, tokens_BND, index):
        q, k, _ = (
            network.layers[index].attn.qkv(network.layers[index].ln1(tokens_BND)).unflatten(-1, (3, 4, 8)).unbind(2)
        )
        return torch.einsum('bihc,bjhc->bhij', q, k)

    network, terms = model.teachers['mim'].network, []
    for index in (1, 2):
        full = network(images, taps=(f'input:{index}',)).tokens(f'input:{index}')
        theirs = relation(network, full, index)
        ours = relation(model.backbone, student_tokens(model, images, hidden_BL, f'input:{index}'), index)
        first, errors = 0 if '+cls' in region else 1, []
        for b, hidden_L in enumerate(hidden_BL):
            kept = ([0] if '+cls' in region else []) + [
                i + 1 for i, hidden in enumerate(hidden_L.tolist()) if not hidden
            ]
            errors.append(smooth_l1(ours[b][:, first:, first:] - theirs[b][:, kept][:, :, kept], 2.0))
        terms.append(torch.stack(errors).mean())
    found = model.loss(images, given(hidden_BL))['loss_relation'].item()
    assert found == pytest.approx(0.5 * sum(terms).item() / 2, rel=1e-10)


@pytest.mark.parametrize('region', ['hidden', 'hidden+cls', 'visible', 'all+cls'])
def test_loss__symmetric_student_under_ragged_masks(build_distiller, images, region):
    """Every hidden token of the batch has the same weight, as in dBOT's symmetric variant with block-wise masks."""
    model = build_distiller(
        backbone=SYMMETRIC, objective=dict(head=dict(type='LinearHead'), region=region, normalize=None)
    )
    tokens = model.backbone(images, TokenMask(RAGGED_BL)).tokens('output')
    linear = model.objectives['feature'].heads[0].linear
    target = model.teachers['boot'].network(images, taps=('block:-1',)).tokens('block:-1')
    error = smooth_l1(tokens @ linear.weight.T + linear.bias - target, 2.0).mean(-1)
    patches = dict(hidden=RAGGED_BL, visible=~RAGGED_BL, all=RAGGED_BL | True)[region.partition('+')[0]]
    counts = torch.cat([torch.full((3, 1), '+cls' in region), patches], dim=1)
    found = model.loss(images, given(RAGGED_BL))['loss_feature'].item()
    assert found == pytest.approx(error[counts].mean().item(), rel=1e-12)


def test_loss__several_taps_are_averaged(build_distiller, images):
    """Each pair has its own head, and the weight multiplies the mean."""
    options = dict(tap=('block:0', 'block:2'), student=('block:1', 'output'), weight=3.0)
    model, hidden_BL = build_distiller(objective=options), hidden_masks()
    objective = model.objectives['feature']
    assert len(objective.heads) == 2
    mask = TokenMask.from_hidden(hidden_BL, 4)
    counts = torch.cat([torch.ones(3, 1, dtype=torch.bool), hidden_BL], dim=1)
    terms = []
    for tap, source, head in zip(('block:0', 'block:2'), ('block:1', 'output'), objective.heads, strict=True):
        target = unbiased(model.teachers['boot'].network(images, taps=(tap,)).tokens(tap))
        prediction = head(model.backbone(images, mask, taps=(source,)), (source,), Region('all', True).tokens(mask))
        terms.append(smooth_l1(prediction - target, 2.0).mean(-1)[counts].mean().item())
    found = model.loss(images, given(hidden_BL))['loss_feature'].item()
    assert found == pytest.approx(3 * (terms[0] + terms[1]) / 2, rel=1e-12)


def test_loss__weight_is_a_factor(build_distiller, images):
    losses = []
    for weight in (1.0, 0.25, 0.0):
        torch.manual_seed(0)
        losses.append(
            build_distiller(objective=dict(weight=weight)).loss(images, given(hidden_masks()))['loss_feature'].item()
        )
    assert losses[1] == pytest.approx(losses[0] / 4, rel=1e-12)
    assert losses[2] == 0


def test_loss__a_hosts_loss_that_averages_itself(build_distiller, images):
    options = dict(loss=dict(type='mmpretrain.PixelReconstructionLoss', criterion='L1'))
    model, hidden_BL = build_distiller(objective=options), hidden_masks()
    target = unbiased(model.teachers['boot'].network(images, taps=('block:-1',)).tokens('block:-1'))
    counts = torch.cat([torch.ones(3, 1, dtype=torch.bool), hidden_BL], dim=1)
    error = (predictions(model, images, hidden_BL) - target).abs()[counts].mean().item()
    assert model.loss(images, given(hidden_BL))['loss_feature'].item() == pytest.approx(error, rel=1e-12)


@pytest.mark.parametrize('masks', ['equal', 'ragged'])
def test_loss__beits_cross_entropy(build_distiller, images, masks):
    """−log of the softmax at the target class, averaged over hidden patches."""
    hidden_BL = hidden_masks() if masks == 'equal' else RAGGED_BL
    objective = dict(TOKENIZER['objective'], head=dict(type='LinearHead'), region='hidden')
    model = build_distiller(backbone=SYMMETRIC, teachers=TOKENIZER['teachers'], objective=objective)
    linear = model.objectives['feature'].heads[0].linear
    scores = model.backbone(images, TokenMask(hidden_BL)).tokens('output')[:, 1:] @ linear.weight.T + linear.bias
    errors = []
    for b, i in hidden_BL.nonzero().tolist():
        row, column = divmod(i, 4)
        number = int(images[b, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].mean() > 0)
        exponents = [math.exp(score) for score in scores[b, i].tolist()]
        errors.append(-math.log(exponents[number] / sum(exponents)))
    found = model.loss(images, given(hidden_BL))['loss_feature'].item()
    assert found == pytest.approx(sum(errors) / len(errors), rel=1e-12)
