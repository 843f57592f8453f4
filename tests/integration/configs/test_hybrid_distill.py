"""Hybrid Distill: what teachers and student see, the losses by hand, and what is refused when the model is built."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.networks import hidden_masks
from test_configs import build
from test_dmae import given, images_of, narrow, small
from torch import Tensor, nn
from torch.nn import functional as F

from mkd_plugin.structures import QueryKey, TokenFeatures, TokenMask, Tokens
from mkd_plugin.utils.configs import get_ablation, get_config

MAIN = 'hybrid_distill/hybrid_vit-base-p16_mae-deit_8xb128-300e_in1k'


# --- Who sees what


def test_loss__both_teachers_see_every_token_once():
    """T_m up to the block above the last relation, whose queries and keys are all it still makes; T_c to its end."""
    model, images, ran = small(get_config(MAIN)), images_of(), {'mim': [], 'semantic': []}
    calls = dict.fromkeys(ran, 0)
    for name, blocks in ran.items():
        network = model.teachers[name].network
        network.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
        for index, block in enumerate(network.layers):
            block.register_forward_hook(lambda _, args, out, i=index, b=blocks: b.append((i, args[0].shape[1])))
    students = []
    model.backbone.layers[0].register_forward_hook(lambda _, args, out: students.append(args[0].shape[1]))
    model.loss(images)
    assert calls == dict(mim=1, semantic=1)
    assert ran == dict(mim=[(i, 17) for i in range(10)], semantic=[(i, 17) for i in range(12)])
    assert students == [1 + round(16 * 0.7**3)]


def most_average_dropped(tokens: list[list[float]], kept: list[int], count: int) -> list[int]:
    """Plain Python: the ``count`` of ``kept`` whose cosine to their mean is smallest."""
    average = [sum(tokens[i][c] for i in kept) / len(kept) for c in range(len(tokens[0]))]
    norm = math.sqrt(sum(a * a for a in average))

    def cosine(i: int) -> float:
        return sum(x * a for x, a in zip(tokens[i], average, strict=True)) / (math.hypot(*tokens[i]) * norm)

    return sorted(sorted(kept, key=cosine)[:count])


@pytest.mark.parametrize(
    ('row', 'taps', 'counts'),
    [('masking-progressive', ('input:0', 'input:4', 'input:8'), (11, 8, 5)), ('masking-direct', ('block:-1',), (5,))],
)
def test_masking__kept_tokens_by_brute_force(row, taps, counts):
    """16 patches, from the features that MAE has of the intact image."""
    model, images = small(get_ablation('hybrid_distill', row)), images_of()
    seen = []
    model.backbone.register_forward_hook(lambda _, args, out: seen.append(args[1]))
    model.loss(images)
    features = model.teachers['mim'].network(images, None, taps)
    for b, found in enumerate(seen[0].ids_keep_BV.tolist()):
        kept = list(range(16))
        for tap, count in zip(taps, counts, strict=True):
            kept = most_average_dropped(features.tokens(tap)[b, 1:].tolist(), kept, count)
        assert found == kept


@pytest.mark.parametrize(
    'row', ['masking-progressive', 'target-msa-output', 'target-last-features', 'relation-of-both']
)
def test_loss__reads_nothing_of_dropped_tokens(row, monkeypatch):
    """Whatever the teachers say about them."""
    cfg = get_ablation('hybrid_distill', row)
    cfg.model.masking = dict(type='RandomMasking', num_visible=5)
    model, images, hidden_BL = small(cfg), images_of(), hidden_masks(visible=5)
    clean = model.loss(images, given(hidden_BL))
    drop_BN = torch.cat([torch.zeros(3, 1, dtype=torch.bool), hidden_BL], dim=1)

    def spoil(value: Tokens | QueryKey) -> Tokens | QueryKey:
        if isinstance(value, Tokens):
            return Tokens(value.x_BND.masked_fill(drop_BN[:, :, None], torch.nan))
        q, k = (x.masked_fill(drop_BN[:, None, :, None], torch.nan) for x in (value.q_BHNK, value.k_BHNK))
        return QueryKey(q, k, value.scale)

    for teacher in model.teachers.values():

        def forward(images, mask, taps, region, forward=teacher.forward):
            features = forward(images, mask, taps)  # every token, so that the dropped ones are there to be spoilt
            return TokenFeatures({tap: spoil(value) for tap, value in features.taps.items()}, features.num_prefix)

        monkeypatch.setattr(teacher, 'forward', forward)
    spoilt = model.loss(images, given(hidden_BL))
    for name in (name for name in clean if name.startswith('loss')):
        assert spoilt[name].item() == pytest.approx(clean[name].item(), rel=1e-12)


# --- Losses by hand


def trace(network: nn.Module, x: Tensor) -> dict[str, list[Tensor]]:
    """All blocks on these tokens: raw outputs, MSA outputs, and Q·Kᵀ per head, from torch's own attention and einsum."""
    found = dict(block=[], attention=[], relation=[])
    for block in network.layers:
        normed, attn = block.ln1(x), block.attn
        update, weights = F.multi_head_attention_forward(
            *[normed.transpose(0, 1)] * 3, attn.qkv.in_features, attn.num_heads, attn.qkv.weight, attn.qkv.bias, None,
            None, False, 0.0, attn.proj.weight, attn.proj.bias, need_weights=True, average_attn_weights=False,
        )  # fmt: skip
        q, k, _ = attn.qkv(normed).unflatten(-1, (3, attn.num_heads, -1)).unbind(2)
        relation = torch.einsum('bihc,bjhc->bhij', q, k)
        torch.testing.assert_close((relation / q.shape[-1] ** 0.5).softmax(-1), weights)  # it is what the softmax reads
        x = x + update.transpose(0, 1)
        found['attention'].append(update.transpose(0, 1))
        found['relation'].append(relation)
        x = x + block.ffn(block.ln2(x))
        found['block'].append(x)
    found['output'] = [network.ln1(x)]
    return found


def kept_rows(x: Tensor, hidden_BL: Tensor, dims: tuple[int, ...]) -> Tensor:
    """cls and visible patches along these dimensions."""
    rows = [[0, *(i + 1 for i, hidden in enumerate(row) if not hidden)] for row in hidden_BL.tolist()]
    picked = []
    for one, row in zip(x, rows, strict=True):
        for dim in dims:
            one = one.index_select(dim - 1, torch.tensor(row))
        picked.append(one)
    return torch.stack(picked)


def smooth_l1(prediction: Tensor, target: Tensor) -> Tensor:
    size = (prediction - target).abs()
    return torch.where(size < 2, size**2 / 4, size - 1).mean()


def standardised(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().sum(-1, keepdim=True) / (x.shape[-1] - 1) + 1e-6).sqrt()


@pytest.mark.parametrize(
    ('row', 'kind', 'blocks'),
    [
        ('default', 'relation', (9, 10)),
        ('alpha-0.3', 'relation', (9, 10)),
        ('layers-11', 'relation', (10,)),
        ('layers-front', 'relation', (1, 2)),
        ('layers-10-11-12', 'relation', (9, 10, 11)),
        ('target-msa-output', 'attention', (9, 10)),
        ('target-features', 'block', (9, 10)),
        ('target-last-features', 'output', (0,)),
    ],
)
def test_loss__both_terms_by_hand(row, kind, blocks):
    cfg = get_ablation('hybrid_distill', row)
    cfg.model.masking = dict(type='RandomMasking', num_visible=5)
    model, images, hidden_BL = small(cfg), images_of(), hidden_masks(visible=5)
    mask = TokenMask.from_hidden(hidden_BL, 5)
    ours = trace(model.backbone, model.backbone.embed(images, mask))
    mim, semantic = (
        trace(model.teachers[name].network, model.teachers[name].network.embed(images, None))
        for name in ('mim', 'semantic')
    )
    found = model.loss(images, given(hidden_BL))
    linear = model.objectives['feature'].heads[0].linear
    wanted = smooth_l1(linear(ours['output'][0]), standardised(kept_rows(semantic['output'][0], hidden_BL, (1,))))
    assert found['loss_feature'].item() == pytest.approx(wanted.item(), rel=1e-12)
    terms = []
    for block, head in zip(blocks, model.objectives['relation'].heads, strict=True):
        if kind == 'relation':
            terms.append(smooth_l1(ours[kind][block], kept_rows(mim[kind][block], hidden_BL, (2, 3))))
        else:
            target = standardised(kept_rows(mim[kind][block], hidden_BL, (1,)))
            terms.append(smooth_l1(head.linear(ours[kind][block]), target))
    alpha = cfg.model.objectives.relation.weight
    assert found['loss_relation'].item() == pytest.approx(alpha * sum(terms).item() / len(terms), rel=1e-10)


def test_loss__scaled_relations_of_a_student_with_other_heads():
    """Its channels are cut into the teacher's heads; both sides are what a softmax of such heads would read."""
    model, images = small(get_ablation('hybrid_distill', 'student-small'), student_heads=6), images_of()
    found = model.loss(images)['loss_relation'].item()
    taps, terms = ('input:9', 'input:10'), []
    inputs = [network(images, None, taps) for network in (model.backbone, model.teachers['mim'].network)]
    for tap, index in zip(taps, (9, 10), strict=True):
        logits = []
        for network, features in zip((model.backbone, model.teachers['mim'].network), inputs, strict=True):
            block = network.layers[index]
            q, k, _ = block.attn.qkv(block.ln1(features.tokens(tap))).unflatten(-1, (3, 2, 12)).unbind(2)
            logits.append(torch.einsum('bihc,bjhc->bhij', q, k) / 12**0.5)
        terms.append(smooth_l1(*logits).item())
    assert found == pytest.approx(sum(terms) / 2, rel=1e-10)


# --- What is refused when the model is built

RESNET = dict(type='TimmTeacher', model='resnet18', seed=0, resample='bilinear')
SMALL_GRID = dict(type='ViTTeacher', arch='b', patch_size=16, img_size=32, seed=0)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'masking.drop': 0.95}, 'drop=0.95 at 3 layers leaves none of 16 patches. Lower drop'),
        ({'masking.drop': -0.1}, r'must lie in \(0, 1\)'),
        ({'masking.at': (0, 4, 12)}, "'input:12' is out of range: the network has 12 blocks"),
        ({'masking.at': ('middle',)}, "at contains 'middle': use the index of a block, or 'last'"),
        ({'masking.at': 'last'}, "at='last': it must be a list"),
        ({'masking.at': (0.5,)}, 'at contains 0.5'),
        ({'masking.teacher': 'mae'}, r"reads the teacher 'mae', but there are only \['mim', 'semantic'\]"),
        ({'objectives.relation.weight': -0.5}, "'relation': weight=-0.5: every value must be at or above 0"),
        ({'objectives.relation.tap': ('relation:10', 'relation:12')}, "'relation': Tap 'relation:12' is out of range"),
        ({'objectives.relation.student': ('relation:-13', 'relation:1')}, "'relation:-13' is out of range"),
        ({'objectives.relation.tap': 'relation:-2'}, 'use the same number of taps for both'),
        ({'objectives.relation.tap': ('block:9', 'block:10')}, 'compare relations with relations'),
        ({'teachers.mim': SMALL_GRID}, r"The teacher has a 2 × 2 grid .* the student 4 × 4. Set the teacher's img_size=64"),
        ({'backbone.arch.num_heads': 3}, '.for relations: attention heads., but the student has 3 and the target 2'),
        ({'teachers.semantic': RESNET}, 'no cls token'),
        ({'teachers.mim': RESNET}, "got 'relation:-3'. To read relations or attention of a plain ViT"),
        (
            {'teachers.mim': RESNET, 'objectives.relation.teacher': 'semantic'},
            "got 'input:0'. To read relations or attention of a plain ViT",
        ),
        ({'teachers.mim.checkpoint': 'checkpoints/none.pth', 'teachers.mim.seed': None}, 'checkpoints/none.pth'),
    ],
)  # fmt: skip
def test_build__what_does_not_fit_is_refused(options, message):
    cfg = get_config(MAIN)
    narrow(cfg)
    for key, value in options.items():
        place, _, last = key.rpartition('.')
        found = cfg.model
        for part in place.split('.'):
            found = found[part]
        found[last] = value
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build(cfg)


def test_build__a_clip_file_of_another_format(tmp_path):
    torch.save({'visual.stem.weight': torch.zeros(3)}, tmp_path / 'clip.pt')
    cfg = get_config('hybrid_distill/hybrid_vit-base-p16_mae-clip_8xb128-300e_in1k')
    cfg.model.teachers.semantic.checkpoint = str(tmp_path / 'clip.pt')
    cfg.model.teachers.mim.update(checkpoint=None, seed=0)
    with pytest.raises(ValueError, match='clip.pt'):
        build(cfg)
