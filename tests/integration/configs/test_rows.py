"""Rows of other papers: the loss of each digits config, shrunk, against its formula in float64."""

from __future__ import annotations

from io import StringIO

import numpy as np
import pytest
import torch
from helpers.rows import tiny
from mmcv.transforms import Compose
from mmengine.dataset import default_collate
from mmengine.registry import DefaultScope
from PIL import Image
from rich.console import Console

import mkd_plugin
from mkd_plugin.datasets import write_digits
from mkd_plugin.preflight.dry_run import dry_run
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import TokenMask


@pytest.fixture
def images():
    return torch.randn(2, 3, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_tinymim__is_kl_of_regrouped_relations(images):
    """Each relation is softmax(A·Bᵀ / √K) with the student's channels cut into the teacher's heads."""
    taps = dict(qk=dict(tap='logit:-1'), vv=dict(tap='value:-1'))
    model = tiny('tinymim/tinymim_digits', taps, dict(num_heads=3, width=36), two_views=True)
    jittered = images + 0.1 * torch.randn_like(images)
    found = model.loss([jittered, images])

    def rows(network, view, first, second):
        qkv = network(view, taps=('qkv:-1',)).tokens('qkv:-1')
        parts = [part.unflatten(2, (3, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1)]
        left, right = parts[first], parts[second]
        return (left @ right.transpose(-1, -2) / left.shape[-1] ** 0.5).softmax(-1)

    for name, pair in (('qk', (0, 1)), ('vv', (2, 2))):
        p = rows(model.teachers['mae'].network, images, *pair)
        q = rows(model.backbone, jittered, *pair)
        wanted = (p * (p / q).log()).sum(-1).mean()
        torch.testing.assert_close(found[f'loss_{name}'], wanted, rtol=1e-9, atol=1e-12)


def test_tinymim__trains_all_that_its_relations_read(images):
    model = tiny('tinymim/tinymim_digits', dict(qk=dict(tap='logit:-1'), vv=dict(tap='value:-1')), dict(num_heads=3))
    losses = model.loss(images)
    (losses['loss_qk'] + losses['loss_vv']).backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert {name.rpartition('.')[0] for name in without} == {
        *('backbone.layers.1.attn.proj', 'backbone.layers.1.ln2', 'backbone.ln1'),
        *('backbone.layers.1.ffn.layers.0.0', 'backbone.layers.1.ffn.layers.1'),
    }


def test_tinymim__is_ready_by_its_dry_run(tmp_path):
    """The trial steps allow parameters without a gradient, because the config does."""
    write_digits(tmp_path / 'digits')
    cfg = mkd_plugin.get_config('tinymim/tinymim_digits')
    cfg.train_dataloader.dataset.data_root = str(tmp_path / 'digits')
    cfg.work_dir = str(tmp_path / 'run')
    text = StringIO()
    assert dry_run(cfg, images=2, console=Console(file=text, width=200)) == 0, text.getvalue()
    cfg.find_unused_parameters = False
    assert dry_run(cfg, images=2, console=Console(file=text, width=200)) == 1
    assert 'get no gradient' in text.getvalue()


def test_two_views__are_one_crop_with_and_without_jitter(tmp_path):
    """The pipeline, the host's collate function and our preprocessor give [student's view, teachers' view]."""
    cfg = mkd_plugin.get_config('tinymim/tinymim_vit-base-p16_teacher-mae-large_8xb512-300e_in1k')
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 280, 3), np.uint8)).save(tmp_path / 'one.png')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        pipeline = Compose(cfg.train_dataloader.dataset.pipeline)
        preprocess = MODELS.build({**cfg.data_preprocessor})
    jitter = pipeline.transforms[3].transforms[0].transforms[0]
    jitter.saturation = jitter.contrast = (1.0, 1.0)
    jitter.brightness = (2.0, 2.0)
    batch = default_collate([pipeline(dict(img_path=str(tmp_path / 'one.png'))) for _ in range(2)])
    stored = [view.clone().float() for view in batch['inputs']]
    assert torch.equal(stored[0], (2 * stored[1]).clamp(max=255))
    found = preprocess(batch, training=True)['inputs']
    assert [tuple(view.shape) for view in found] == [(2, 3, 224, 224)] * 2
    assert not torch.equal(found[0], found[1])


def attend(layer, queries, keys, values):
    """Multi-head attention, written out."""
    width, heads = queries.shape[-1], layer.num_heads
    weights, biases = layer.kv.weight.split(width), layer.kv.bias.split(width)
    parts = [layer.q(queries), keys @ weights[0].T + biases[0], values @ weights[1].T + biases[1]]
    out = []
    for q, k, v in zip(*(part.split(width // heads, dim=-1) for part in parts), strict=True):
        out.append((q @ k.transpose(-1, -2) / (width // heads) ** 0.5).softmax(-1) @ v)
    return layer.proj(torch.cat(out, dim=-1))


def test_crossmae__is_a_decoder_without_self_attention(images):
    """Each hidden patch of the sample alone: its mask token attends to sums of all taps, then its pixels are compared."""
    student = ['input:0', 'block:0', 'block:1']
    model = tiny('crossmae/crossmae_digits', dict(pixel=dict(student=student)))
    torch.manual_seed(3)
    found = model.loss(images)['loss_pixel']
    torch.manual_seed(3)
    mask = model.masking(images, None)
    head = model.objectives['pixel'].heads[0]
    features = model.backbone(images, mask, student)
    pixels = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
    losses = []
    for image, ids in enumerate(mask.regions['sample'].tolist()):
        assert len(set(ids)) == 9 and mask.hidden_BL[image, ids].all()
        taps = [features.tokens(tap)[image : image + 1] for tap in student]
        for patch in ids:
            x = head.mask_token + head.pos_embed[:, patch : patch + 1]
            for block, norm, weights in zip(head.layers, head.source_norms, head.mix.weight, strict=True):
                source = norm(sum(weight * tap for weight, tap in zip(weights, taps, strict=True)))
                x = x + attend(block.attn, block.ln1(x), source, source)
                x = x + block.ffn(block.ln2(x))
            target = pixels[image, patch]
            target = (target - target.mean()) / (target.var(unbiased=True) + 1e-6).sqrt()
            losses.append((head.predict(head.norm(x)).flatten() - target).square().mean())
    torch.testing.assert_close(found, torch.stack(losses).mean(), rtol=1e-9, atol=1e-12)


def test_sampled_masking__a_sample_of_the_hidden_patches():
    with pytest.raises(ValueError, match=r'predicted=0.9 asks for 32 of 36 patches; .* \[1, 27\]'):
        tiny('crossmae/crossmae_digits', dict(pixel=dict(student='output')), **{'masking.predicted': 0.9})


def test_caev2__regresses_hidden_tokens_from_visible_ones(images):
    model = tiny('caev2/caev2_digits', **{'objectives.feature.head.num_heads': 2})
    torch.manual_seed(3)
    found = model.loss(images)['loss_feature']
    torch.manual_seed(3)
    mask = model.masking(images, None)
    assert mask.hidden_BL.sum(1).tolist() == [18, 18]
    head = model.objectives['feature'].heads[0]
    target = model.teachers['frozen'].network(images).tokens('output')
    student = model.backbone(images, mask).tokens('output')
    losses = []
    for image in range(2):
        places = head.pos_embed[0]
        hidden_L = mask.hidden_BL[image]
        visible, x = student[image : image + 1, 1:], head.mask_token.expand(1, 18, -1)
        at_x, at_source = places[hidden_L], torch.cat([places[~hidden_L], places[hidden_L]])
        for block in head.layers:
            source = torch.cat([visible, x], dim=1)
            update = attend(block.attn, block.norm_q(x + at_x), block.norm_k(source + at_source), block.norm_v(source))
            x = block.ln2(x + block.gamma1.weight * update)
            x = x + block.ffn.gamma2.weight * block.ffn.layers(x)
        predicted = head.predict(head.norm(torch.cat([student[image, :1], visible[0], x[0]])))
        wanted = target[image]
        wanted = torch.cat([wanted[:1], wanted[1:][~hidden_L], wanted[1:][hidden_L]])
        cosines = (predicted * wanted).sum(-1) / (predicted.norm(dim=-1) * wanted.norm(dim=-1))
        losses.append(1 - cosines)
    torch.testing.assert_close(found, torch.stack(losses).mean(), rtol=1e-9, atol=1e-12)


def test_exact_block_masking__blocks_of_the_exact_size():
    """Most hidden patches have a hidden neighbour below or above, unlike in a random mask of the same share."""
    model = tiny('caev2/caev2_digits', **{'objectives.feature.head.num_heads': 2})
    hidden = model.masking(torch.zeros(200, 3, 24, 24), None).hidden_BL.view(200, 6, 6)
    assert hidden.flatten(1).sum(1).unique().tolist() == [18]
    together = (hidden[:, 1:] == hidden[:, :-1]).double().mean()
    assert together > 0.6  # 0.49 for a random mask
    assert (hidden.double().mean(0) > 0.1).all()


def test_proteus__compares_intact_and_masked_tokens():
    images = torch.randn(4, 3, 24, 24, dtype=torch.float64)
    model = tiny('proteus/proteus_digits')
    torch.manual_seed(3)
    found = model.loss(images)
    torch.manual_seed(3)
    mask = model.masking(images, None)
    hidden_BL = mask.hidden_BL[1::2]
    assert not mask.hidden_BL[::2].any() and hidden_BL.sum(1).tolist() == [18, 18, 0, 0]
    target = model.teachers['frozen'].network(images).tokens('output')
    intact = model.backbone(images).tokens('output')
    masked = model.backbone(images, TokenMask(hidden_BL)).tokens('output')
    cls, patches, hidden = (
        torch.nn.Sequential(objective.heads[0].norm, objective.heads[0].linear)
        for objective in model.objectives.values()
    )
    h1 = cls(intact[:, :1])
    term_1 = (h1 - target[:, :1]).square().mean()
    term_2 = (torch.cat([h1, patches(intact[:, 1:])], dim=1) - target).square().mean()
    term_3 = (hidden(masked[:, 1:][hidden_BL]) - target[:, 1:][hidden_BL]).square().mean()
    total = found['loss_cls'] + found['loss_feature']
    torch.testing.assert_close(total, term_1 + term_2, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found['loss_patch'], term_3, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    'name, change, message',
    [
        ('caev2/caev2_digits', {'masking.min_block': 19}, r'min_block=19: it must lie in \[1, 18\]'),
        ('caev2/caev2_digits', {'masking.min_aspect': 2.0}, r'min_aspect=2.0 must lie in \(0, 1\]'),
        ('data2vec2/data2vec2_digits', {'masking.masking.side': 2}, 'side=2: .* the side must be odd'),
        ('data2vec2/data2vec2_digits', {'masking.count': 0}, 'count=0: it must be at least 1'),
        ('data2vec2/data2vec2_digits', {'teachers.ema.last': 5}, r'last=5: it must lie in \[1, 2\]'),
        ('data2vec2/data2vec2_digits', {'objectives.cls.tap': 'output'}, "has only the tap 'target', got 'output'"),
        ('data2vec2/data2vec2_digits', {'objectives.feature.head.groups': 5}, 'groups that divide width=32'),
        ('ijepa/ijepa_digits', {'masking.target_area': (0.2, 0.1)}, r'target_area=\(0.2, 0.1\): give two shares'),
        ('ijepa/ijepa_digits', {'masking.targets': 0}, 'targets=0, .*use at least one target'),
        ('gram/gram_digits', {'teachers.ema.every': 0}, 'every=0, times=3: both must be at least 1'),
        ('proteus/proteus_digits', {'masking.share': 0.0}, r'share=0.0: it must lie in \(0, 1\]'),
        ('proteus/proteus_digits', {'backbone.type': 'VisibleViT'}, 'IntactAndMasked hides nothing in some views'),
    ],
)
def test_wrong_option__is_refused(name, change, message):
    with pytest.raises(ValueError, match=message):
        tiny(name, **change)
