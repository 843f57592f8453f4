"""Heads: the decoder against an explicit MAE decoder, the others against plain matrix products."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.networks import hidden_masks, scatter_weights
from torch.nn import functional as F

from mkd_plugin.models.vit import sincos_positions
from mkd_plugin.registry import build
from mkd_plugin.structures import QueryKey, Region, TokenFeatures, TokenMask, Tokens

SIZES = dict(in_width=12, out_width=7, grid=(4, 4))
DECODER = dict(type='TransformerDecoder', depth=2, width=16, num_heads=2)
REGIONS = ['hidden', 'hidden+cls', 'visible', 'visible+cls', 'all', 'all+cls']


def head_of(cfg, **sizes):
    return scatter_weights(build(cfg, **{**SIZES, **sizes})).double()


@pytest.fixture
def mask():
    return TokenMask.from_hidden(hidden_masks(), 4)


def features_of(mask=None):
    """Build a student's tokens: cls and the visible patches, or cls and all patches."""
    tokens = torch.randn(3, 17 if mask is None else 5, 12, dtype=torch.float64)
    return TokenFeatures({'output': Tokens(tokens)}, num_prefix=1, mask=mask)


def rows_of(full_BND, hidden_BL, region):
    """List a region's rows of (cls, all patches), image by image."""
    patches, _, cls = region.partition('+')
    wanted = {'hidden': hidden_BL, 'visible': ~hidden_BL, 'all': hidden_BL | True}[patches]
    picked = []
    for tokens, chosen in zip(full_BND, wanted, strict=True):
        picked.append(torch.cat([tokens[: bool(cls)], tokens[1:][chosen]]))
    return torch.stack(picked)


def mae_block(x, weights, heads):
    """Pre-norm block with explicit attention."""

    def linear(name, value):
        return value @ weights[f'{name}.weight'].T + weights[f'{name}.bias']

    def norm(name, value):
        return F.layer_norm(value, value.shape[-1:], weights[f'{name}.weight'], weights[f'{name}.bias'], 1e-6)

    batch, length, width = x.shape
    q, k, v = linear('attn.qkv', norm('ln1', x)).reshape(batch, length, 3, heads, width // heads).unbind(2)
    scores = torch.einsum('bihc,bjhc->bhij', q, k) / math.sqrt(width // heads)
    mixed = torch.einsum('bhij,bjhc->bihc', scores.softmax(-1), v).reshape(batch, length, width)
    x = x + linear('attn.proj', mixed)
    return x + linear('ffn.layers.1', F.gelu(linear('ffn.layers.0.0', norm('ln2', x))))


def mae_decoder(head, tokens_BND, hidden_BL):
    """MAE's forward_decoder: insert mask tokens, run every token through every block, predict every token."""
    weights = head.state_dict()
    embedded = tokens_BND @ weights['embed.weight'].T + weights['embed.bias']
    filled = weights['mask_token'].expand(3, 17, -1).clone()
    filled[:, 0] = embedded[:, 0]
    if hidden_BL is None:
        filled = embedded
    else:
        for image, tokens, hidden_L in zip(filled, embedded, hidden_BL, strict=True):
            image[1:][~hidden_L] = tokens[1:]
    x = filled + sincos_positions((4, 4), 16).double()
    for index in range(2):
        prefix = f'layers.{index}.'
        x = mae_block(x, {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}, heads=2)
    x = F.layer_norm(x, (16,), weights['norm.weight'], weights['norm.bias'], 1e-6)
    return x @ weights['predict.weight'].T + weights['predict.bias']


@pytest.mark.parametrize('region', REGIONS)
@pytest.mark.parametrize('student', ['visible tokens', 'full length'])
def test_transformer_decoder__equals_maes(mask, region, student):
    head = head_of(DECODER)
    features = features_of(mask if student == 'visible tokens' else None)
    found = head(features, ('output',), Region.parse(region).tokens(mask))
    full = mae_decoder(head, features.tokens('output'), mask.hidden_BL if student == 'visible tokens' else None)
    torch.testing.assert_close(found, rows_of(full, mask.hidden_BL, region), rtol=1e-10, atol=1e-10)


def test_transformer_decoder__ragged_masks_predict_the_full_grid():
    head, features = head_of(DECODER), features_of()
    hidden_BL = torch.stack([torch.arange(16) < count for count in (3, 11, 5)])
    found = head(features, ('output',), Region.parse('hidden+cls').tokens(TokenMask(hidden_BL)))
    wanted = mae_decoder(head, features.tokens('output'), None)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_transformer_decoder__drop_path_grows_linearly():
    head = head_of(dict(DECODER, depth=3, drop_path_rate=0.2))
    assert list(head.drop_path.rates) == pytest.approx([0, 0.1, 0.2])
    assert sum(parameter.numel() for parameter in head.parameters()) == sum(
        parameter.numel() for parameter in head_of(dict(DECODER, depth=3)).parameters()
    )


def test_transformer_decoder__activation_checkpointing_changes_nothing(mask):
    plain, again = head_of(DECODER), head_of(dict(DECODER, activation_checkpointing=True))
    again.load_state_dict(plain.state_dict())
    features, region = features_of(mask), Region.parse('hidden+cls').tokens(mask)
    for head in (plain, again):
        head(features, ('output',), region).square().sum().backward()
    for one, other in zip(plain.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('options', [dict(width=18), dict(num_heads=3), dict(depth=0)])
def test_transformer_decoder__wrong_size(options):
    with pytest.raises(ValueError, match='multiple of|must be positive'):
        head_of({**DECODER, **options})


@pytest.mark.parametrize('num_layers', [1, 2, 3])
@pytest.mark.parametrize('region', ['visible', 'visible+cls'])
def test_projector_head__equals_products(mask, region, num_layers):
    """DMAE: hidden layers of the target's width, GELU between layers."""
    head, features = head_of(dict(type='ProjectorHead', num_layers=num_layers)), features_of(mask)
    weights = list(head.parameters())
    wanted = features.tokens('output')[:, 0 if '+cls' in region else 1 :]
    for index in range(num_layers):
        weight, bias = weights[2 * index : 2 * index + 2]
        assert weight.shape == (7, 12 if index == 0 else 7)
        wanted = wanted @ weight.T + bias
        if index < num_layers - 1:
            wanted = 0.5 * wanted * (1 + torch.erf(wanted / math.sqrt(2)))
    assert len(weights) == 2 * num_layers
    found = head(features, ('output',), Region.parse(region).tokens(mask))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_projector_head__needs_a_layer():
    with pytest.raises(ValueError, match='num_layers=0: it must be at least 1'):
        head_of(dict(type='ProjectorHead', num_layers=0))


def test_projector_head__keeps_pytorchs_initialisation():
    """Kaiming-uniform with a = √5: weight and bias within 1 / √fan_in, unlike xavier's zero bias."""
    head = build(dict(type='ProjectorHead'), in_width=64, out_width=48, grid=(4, 4))
    for layer, fan_in in ((head.layers[0], 64), (head.layers[2], 48)):
        bound = 1 / math.sqrt(fan_in)
        assert layer.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert 0.5 * bound < layer.bias.abs().max().item() <= bound


@pytest.mark.parametrize('region', REGIONS)
def test_linear_head__equals_a_product(mask, region):
    head, features = head_of(dict(type='LinearHead')), features_of()
    wanted = rows_of(features.tokens('output') @ head.linear.weight.T + head.linear.bias, mask.hidden_BL, region)
    found = head(features, ('output',), Region.parse(region).tokens(mask))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_no_head__gives_features_and_relations_as_they_are(mask):
    head = head_of(dict(type='NoHead'), out_width=12)
    q, k = torch.randn(2, 3, 2, 17, 6, dtype=torch.float64)
    features = TokenFeatures({'output': features_of().taps['output'], 'relation': QueryKey(q, k)}, num_prefix=1)
    region = Region.parse('visible+cls').tokens(mask)
    assert torch.equal(
        head(features, ('output',), region), rows_of(features.tokens('output'), mask.hidden_BL, 'visible+cls')
    )
    relation = torch.einsum('bhik,bhjk->bihj', q, k)  # rows first, so that rows_of can pick them
    relation = rows_of(relation.flatten(2), mask.hidden_BL, 'visible+cls').unflatten(2, (2, 17)).permute(0, 3, 2, 1)
    relation = rows_of(relation.flatten(2), mask.hidden_BL, 'visible+cls').unflatten(2, (2, 5)).permute(0, 2, 3, 1)
    torch.testing.assert_close(head(features, ('relation',), region), relation, rtol=1e-12, atol=1e-12)


def test_no_head__needs_the_width_of_the_target():
    with pytest.raises(ValueError, match='the student has 12 and the target 7. Add a head'):
        head_of(dict(type='NoHead'))


@pytest.mark.parametrize('cfg', [dict(type='LinearHead'), dict(type='ProjectorHead'), DECODER])
def test_reset_parameters__forgets_everything(cfg):
    states = []
    for garbage in (7.0, -1.0):
        head = build(cfg, **SIZES)
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.fill_(garbage)
        torch.manual_seed(1)
        head.reset_parameters()
        states.append(head.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


NECK = dict(
    type='mmpretrain.MAEPretrainDecoder', num_patches=16, patch_size=4, embed_dim=12, decoder_embed_dim=16,
    decoder_depth=2, decoder_num_heads=2, mlp_ratio=4,
)  # fmt: skip


def test_neck_head__equals_mmpretrains_decoder(mask):
    head, features = head_of(dict(type='NeckHead', neck=NECK), out_width=48), features_of(mask)
    predictions = head.neck(features.tokens('output'), mask.ids_restore_BL)
    found = head(features, ('output',), Region.parse('hidden').tokens(mask))
    assert torch.equal(
        found, torch.stack([row[hidden] for row, hidden in zip(predictions, mask.hidden_BL, strict=True)])
    )


NECK_NAMES = {'embed.': 'decoder_embed.', 'layers.': 'decoder_blocks.', 'norm.': 'ln1.', 'predict.': 'decoder_pred.'}


def test_transformer_decoder__equals_mmpretrains_on_the_same_weights(mask):
    ours, features = head_of(DECODER, out_width=48), features_of(mask)
    theirs = head_of(dict(type='NeckHead', neck=NECK), out_width=48)
    state = {'decoder_pos_embed' if name == 'pos_embed' else name: value for name, value in ours.state_dict().items()}
    for old, new in NECK_NAMES.items():
        state = {new + name[len(old) :] if name.startswith(old) else name: value for name, value in state.items()}
    theirs.neck.load_state_dict(state, strict=True)
    region = Region.parse('hidden').tokens(mask)
    found, wanted = (head(features, ('output',), region) for head in (ours, theirs))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_neck_head__draws_new_weights():
    head = build(dict(type='NeckHead', neck=NECK), in_width=12, out_width=48, grid=(4, 4))
    first = {name: value.clone() for name, value in head.state_dict().items()}
    assert first['neck.decoder_pos_embed'].any()  # init_weights has run, which fills it
    head.reset_parameters()
    drawn = [name for name, value in head.state_dict().items() if not torch.equal(value, first[name])]
    assert {name for name in first if name.endswith('.weight') and 'ln' not in name} | {'neck.mask_token'} <= set(drawn)
    assert 'neck.decoder_pos_embed' not in drawn


def test_neck_head__neck_of_another_width_or_grid():
    with pytest.raises(
        ValueError, match=r'MAEPretrainDecoder gives \(1, 16, 48\) for one image; \(1, 16, 32\) is needed'
    ):
        head_of(dict(type='NeckHead', neck=NECK), out_width=32)


@pytest.mark.parametrize('options', [dict(num_patches=9), dict(embed_dim=16)])
def test_neck_head__neck_that_does_not_take_the_tokens(options):
    with pytest.raises(ValueError, match="MAEPretrainDecoder rejects the student's tokens"):
        head_of(dict(type='NeckHead', neck={**NECK, **options}), out_width=48)


class PlainNeck(torch.nn.Module):
    """Neck without init_weights: predicts each patch from its token in (cls, visible, hidden)."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(12, 7)

    def forward(self, tokens_BND, ids_restore_BL):
        filled = torch.zeros(len(tokens_BND), 16, 12, dtype=tokens_BND.dtype)
        filled[:, : tokens_BND.shape[1] - 1] = tokens_BND[:, 1:]
        return self.linear(torch.stack([row[ids] for row, ids in zip(filled, ids_restore_BL, strict=True)]))


@pytest.mark.parametrize('student', ['visible tokens', 'full length'])
def test_neck_head__plain_neck_of_any_student(mask, student):
    head = head_of(dict(type='NeckHead', neck=dict(type=PlainNeck)))
    features = features_of(mask if student == 'visible tokens' else None)
    found = head(features, ('output',), Region.parse('visible').tokens(mask))
    tokens = features.tokens('output')
    visible = tokens[:, 1:] if student == 'visible tokens' else rows_of(tokens, mask.hidden_BL, 'visible')
    torch.testing.assert_close(found, head.neck.linear(visible), rtol=1e-12, atol=1e-12)
    before = head.neck.linear.weight.clone()
    head.reset_parameters()
    assert not torch.equal(head.neck.linear.weight, before)
