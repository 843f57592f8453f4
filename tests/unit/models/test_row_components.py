"""Components of the unified view's rows beyond tokens and patches, against loops and mmpretrain in float64."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.networks import hidden_masks, scatter_weights
from helpers.objectives import TOKENIZER
from mmengine.dist import all_reduce
from torch.nn import functional as F

from mkd_plugin.models import losses
from mkd_plugin.models.losses import ContrastedCrossEntropy, PrototypeCrossEntropy, UniGradLoss
from mkd_plugin.registry import build
from mkd_plugin.structures import Region, RegionTokens, TokenFeatures, TokenMask, Tokens


def tokens(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_unigrad__is_attraction_and_correlation():
    prediction, target = tokens(2, 3, 5), tokens(2, 3, 5, seed=1)
    every = [target[b, r] for b in range(2) for r in range(3)]
    wanted = torch.zeros(2, 3, dtype=torch.float64)
    for b in range(2):
        for r in range(3):
            p = prediction[b, r]
            apart = sum((p @ t) ** 2 for t in every) / 6  # pᵀ (mean of t tᵀ) p
            wanted[b, r] = (((p - target[b, r]) ** 2).sum() + 0.02 * apart) / 5
    torch.testing.assert_close(UniGradLoss()(prediction, target), wanted, rtol=1e-12, atol=1e-12)


def test_unigrad__padding_does_not_correlate():
    prediction, target = tokens(2, 3, 5), tokens(2, 3, 5, seed=1)
    weight = torch.tensor([[1.0, 1, 1], [1, 0, 0]]).double()
    region = RegionTokens('hidden', False, torch.zeros(2, 3, dtype=torch.long), weight)
    found = UniGradLoss(weight=1.0)(prediction, target, region=region)
    kept = weight.bool()
    alone = UniGradLoss(weight=1.0)(prediction[kept][None], target[kept][None])[0]
    torch.testing.assert_close(found[kept], alone, rtol=1e-12, atol=1e-12)


def test_unigrad__correlation_is_that_of_all_processes(monkeypatch):
    """Another process whose targets are twice as long, for the same number of tokens."""
    prediction, target = tokens(1, 3, 5), tokens(1, 3, 5, seed=1)
    factors = iter([(1 + 4) / 2, 1])
    monkeypatch.setattr(losses, 'all_reduce', lambda x, op: x.mul_(next(factors)))
    found = UniGradLoss(weight=1.0)(prediction, target)
    monkeypatch.setattr(losses, 'all_reduce', all_reduce)
    both = UniGradLoss(weight=1.0)(prediction.repeat(2, 1, 1), torch.cat([target, 2 * target]))[:1]
    torch.testing.assert_close(found, both, rtol=1e-12, atol=1e-12)


def test_prototypes__are_sharpened_cross_entropy_with_maximal_mean_entropy():
    prediction, target = tokens(4, 1, 5), tokens(4, 1, 5, seed=1)
    loss = PrototypeCrossEntropy(width=5, prototypes=3, temperature=0.2, sharpening=0.25, spread=0.7).double()

    def assigned(x, temperature):
        cosines = [float(x @ c / x.norm() / c.norm()) for c in loss.prototypes.detach()]
        weights = [math.exp(cosine / temperature) for cosine in cosines]
        return [weight / sum(weights) for weight in weights]

    found = [assigned(prediction[b, 0], 0.2) for b in range(4)]
    sharp = [assigned(target[b, 0], 0.2 * 0.25) for b in range(4)]
    mean = [sum(p[c] for p in found) / 4 for c in range(3)]
    divergence = sum(m * math.log(3 * m) for m in mean)
    wanted = [
        [0.7 * divergence - sum(s * math.log(p) for s, p in zip(*pair, strict=True))]
        for pair in zip(sharp, found, strict=True)
    ]
    torch.testing.assert_close(
        loss(prediction, target), torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-9
    )
    loss(prediction.requires_grad_(), target).mean().backward()
    assert loss.prototypes.grad.abs().sum() > 0 and prediction.grad.abs().sum() > 0


def test_prototypes__a_low_temperature_stays_finite():
    loss = PrototypeCrossEntropy(width=5, prototypes=3, temperature=1e-3)
    prediction = tokens(2, 1, 5).float().requires_grad_()
    found = loss(prediction, tokens(2, 1, 5, seed=1).float())
    found.mean().backward()
    assert found.isfinite().all() and prediction.grad.isfinite().all()


def test_contrasted_cross_entropy__positive_is_the_other_mask_of_the_image():
    scores, classes = tokens(6, 4, 5), torch.arange(24).view(6, 4, 1) % 5
    means = [scores[row].mean(0) for row in range(6)]
    wanted = torch.zeros(6, 4, dtype=torch.float64)
    for row in range(6):
        others = {k: float(F.cosine_similarity(means[row], means[k], dim=0)) / 0.2 for k in range(6) if k != row}
        partner = row + 1 if row % 2 == 0 else row - 1
        contrast = math.log(sum(math.exp(value) for value in others.values())) - others[partner]
        for r in range(4):
            wanted[row, r] = -scores[row, r].log_softmax(0)[classes[row, r, 0]] + 0.5 * contrast
    found = ContrastedCrossEntropy(temperature=0.2, weight=0.5)(scores, classes)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_contrasted_cross_entropy__needs_two_masks(build_distiller):
    loss = dict(type='ContrastedCrossEntropy')
    objective = {**TOKENIZER['objective'], 'loss': loss, 'region': 'hidden'}
    with pytest.raises(
        ValueError, match=r'compares 2 masks of each image, but RandomMasking draws 1. Use DisjointMasks'
    ):
        build_distiller(teachers=TOKENIZER['teachers'], objective=objective)
    masking = dict(type='DisjointMasks', parts=2)
    model = build_distiller(teachers=TOKENIZER['teachers'], objective=objective, masking=masking)
    images = tokens(2, 3, 16, 16)
    torch.manual_seed(4)
    found = model.loss(images)['loss_feature']
    torch.manual_seed(4)
    mask = model.masking(images, None)
    features = model.backbone(images.repeat_interleave(2, 0), mask)
    region = mask.patches('hidden')
    scores = model.objectives['feature'].heads[0](features, ('output',), region)
    signs = model.teachers['boot'].generator(images).repeat_interleave(2, 0).gather(1, region.ids_BR)
    wanted = ContrastedCrossEntropy()(scores, signs.unsqueeze(-1)).mean()
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('parts', [2, 5])
def test_disjoint_masks__show_each_patch_at_most_once(build_distiller, parts):
    masking = build_distiller(masking=dict(type='DisjointMasks', parts=parts)).masking
    mask = masking(torch.zeros(50, 3, 16, 16), None)
    shown = (~mask.hidden_BL).view(50, parts, 16)
    assert (shown.sum(2) == 16 // parts).all() and mask.per_image == masking.per_image == parts
    assert (shown.sum(1) <= 1).all()
    assert (shown.double().mean((0, 1)) - (16 // parts) / 16).abs().max() < 0.15  # no patch is preferred


def test_spectrum_teacher__is_the_transform_cut_into_patches(build_distiller):
    pixel = dict(teachers=dict(pixel=dict(type='SpectrumTeacher')), objective=dict(region='all', normalize=None))
    model = build_distiller('mae', **pixel)
    images = tokens(1, 3, 16, 16)
    found = model.teachers['pixel'](images, None, ('output',)).tokens('output')[0]
    assert model.teachers['pixel'].tap_spec('output').channels == found.shape[1] == 2 * 4 * 4 * 3
    places = torch.arange(16).double()
    frequencies = places - 8  # frequency 0 in the middle
    angles = -2 * math.pi * frequencies[:, None] * places[None] / 16
    wave = torch.complex(angles.cos(), angles.sin()) / 4
    spectrum = torch.stack([wave @ channel.to(wave.dtype) @ wave.T for channel in images[0]])
    assert torch.allclose(spectrum.abs().square().sum(), images.square().sum())
    for row in range(4):
        for column in range(4):
            block = spectrum[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].permute(1, 2, 0).flatten()
            wanted = torch.cat([block.real, block.imag])
            torch.testing.assert_close(found[4 * row + column], wanted, rtol=1e-9, atol=1e-12)


NECK = dict(
    type='mmpretrain.CAENeck', num_classes=7, embed_dims=12, regressor_depth=2, decoder_depth=2, num_heads=2,
    layer_scale_init_value=0.1, mask_tokens_num=12,
)  # fmt: skip
CAE_NAMES = (
    ('layers.', 'regressors.'), ('decoder.', 'decoders.'), ('regressed_norm.', 'norm_regressor.'), ('norm.', 'norm_decoder.'),
    ('predict.', 'head.'),
)  # fmt: skip
CAE_PARTS = {
    'regressors': {'norm_q': 'norm1_q_cross', 'norm_k': 'norm1_k_cross', 'norm_v': 'norm1_v_cross', 'ln2': 'norm2_cross',
                   'attn': 'cross_attn', 'gamma1.weight': 'gamma_1_cross', 'ffn.gamma2.weight': 'gamma_2_cross'},
    'decoders': {'attn.gamma1.weight': 'gamma_1', 'ffn.gamma2.weight': 'gamma_2'},
}  # fmt: skip


def in_mmpretrains_names(state):
    """Weights of our regressor and decoder for mmpretrain's CAENeck, which has no bias of keys."""
    found = {}
    for name, value in state.items():
        name = next((new + name[len(old) :] for old, new in CAE_NAMES if name.startswith(old)), name)
        kind, _, rest = name.partition('.')
        for old, new in CAE_PARTS.get(kind, {}).items():
            index, _, part = rest.partition('.')
            if part.startswith(old):
                name = f'{kind}.{index}.{new}{part[len(old) :]}'
        base = name.rpartition('.')[0].rpartition('.')[0]
        if name.endswith('kv.weight'):
            found[f'{base}.k.weight'], found[f'{base}.v.weight'] = value.chunk(2)
        elif name.endswith('kv.bias') and 'qkv' not in name:
            found[f'{base}.v_bias'] = value.chunk(2)[1]
        elif name.endswith('qkv.bias'):
            found[f'{base}.q_bias'], _, found[f'{base}.v_bias'] = value.chunk(3)
        elif name.endswith('.q.bias'):
            found[f'{base}.q_bias'] = value
        elif name != 'pos_embed':
            found[name] = value
    return found


def test_context_regressor__with_a_decoder_equals_mmpretrains_cae():
    cfg = dict(type='ContextRegressor', depth=2, num_heads=2, decoder_depth=2)
    ours = scatter_weights(build(cfg, in_width=12, out_width=7, grid=(4, 4))).double()
    theirs = build(NECK).double()
    state = in_mmpretrains_names({k: v for k, v in ours.state_dict().items() if 'attn.qkv.weight' not in k})
    state.update({k.replace('decoder.', 'decoders.'): v for k, v in ours.state_dict().items() if 'qkv.weight' in k})
    theirs.load_state_dict(state, strict=True)
    mask = TokenMask.from_hidden(hidden_masks(), 4)
    features = TokenFeatures({'output': Tokens(tokens(3, 5, 12))}, num_prefix=1, mask=mask)
    places = ours.pos_embed.expand(3, -1, -1)
    hidden, shown = (places[chosen].view(3, -1, 12) for chosen in (mask.hidden_BL, ~mask.hidden_BL))
    wanted, _ = theirs(features.tokens('output')[:, 1:], hidden, shown)
    found = ours(features, ('output',), Region.parse('hidden').tokens(mask))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_cross_attention_decoder__predicts_cls_by_a_query_without_position():
    cfg = dict(type='CrossAttentionDecoder', depth=1, width=8, num_heads=2, num_taps=1)
    head = scatter_weights(build(cfg, in_width=12, out_width=7, grid=(4, 4))).double()
    mask = TokenMask.from_hidden(hidden_masks(), 4)
    features = TokenFeatures({'output': Tokens(tokens(3, 5, 12))}, num_prefix=1, mask=mask)
    block = head.layers[0]
    source = head.source_norms[0](features.tokens('output') * head.mix.weight)
    query = head.mask_token.expand(3, 1, -1)
    k, v = block.attn.kv(source).chunk(2, dim=-1)
    q = block.attn.q(block.ln1(query))
    mixed = [
        ((q[..., i : i + 4] @ k[..., i : i + 4].transpose(1, 2)) / 2).softmax(-1) @ v[..., i : i + 4] for i in (0, 4)
    ]
    x = query + block.attn.proj(torch.cat(mixed, dim=-1))
    wanted = head.predict(head.norm(x + block.ffn(block.ln2(x))))
    found = head(features, ('output',), Region.parse('cls').tokens(mask))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    both = head(features, ('output',), Region.parse('hidden+cls').tokens(mask))
    torch.testing.assert_close(both[:, :1], wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(both[:, 1:], head(features, ('output',), Region.parse('hidden').tokens(mask)))


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(masking=dict(type='DisjointMasks', parts=1)), r'parts=1: it must lie in \[2, 16\]'),
        (dict(objective=dict(loss=dict(type='PrototypeCrossEntropy', prototypes=1))), 'use at least two prototypes'),
        (dict(objective=dict(loss=dict(type='ContrastedCrossEntropy', temperature=0))), 'temperature=0: it must be positive'),
        (dict(objective=dict(loss=dict(type='PrototypeCrossEntropy', prototype=9))), r"no option \['prototype'\]"),
        (dict(masking=dict(type='SampledMasking', predicted=0.2, ratios=0.5)), r"no option \['ratios'\].*\['ratio'\]"),
        (dict(masking=dict(type='InverseBlockMasking', ratios=0.5)), r"no option \['ratios'\].*\['ratio'\]"),
        (dict(objective=dict(head=dict(type='TargetPredictor', dept=2))), r"no option \['dept'\].*\['depth'\]"),
    ],
)  # fmt: skip
def test_wrong_option__is_named(build_distiller, change, message):
    with pytest.raises(ValueError, match=message):
        build_distiller(**change)
