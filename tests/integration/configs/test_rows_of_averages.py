"""Rows of other papers that learn from an average of the student: losses against their formulas in float64."""

from __future__ import annotations

import pytest
import torch
from helpers.networks import scatter_weights
from helpers.rows import tiny

import mkd_plugin
from mkd_plugin.models.protocols import Progress
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import TokenMask


@pytest.fixture
def images():
    return torch.randn(2, 3, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_gram__compares_similarities_of_patches(images):
    model = tiny('gram/gram_digits')
    ema = model.teachers['ema']
    for network in (ema.network, ema.anchor):
        scatter_weights_of_buffers(network)
    torch.manual_seed(3)
    found = model.loss(images)['loss_gram']
    torch.manual_seed(3)
    mask = model.masking(images, None)
    squares = []
    for image in range(2):
        student = model.backbone(images, mask).tokens('output')[image, 1:]
        anchor = ema.anchor(images).tokens('output')[image, 1:]
        for i in range(36):
            for j in range(36):
                a, b = (torch.cosine_similarity(x[i], x[j], dim=0) for x in (student, anchor))
                squares.append((a - b) ** 2)
    torch.testing.assert_close(found, 2 * torch.stack(squares).mean(), rtol=1e-9, atol=1e-12)


def scatter_weights_of_buffers(network):
    """Move the weights of a frozen copy off the student's."""
    for buffer in network.buffers():
        buffer.add_(torch.randn_like(buffer) * 0.05)


def test_anchor__is_the_average_of_the_last_of_a_few_steps():
    model = tiny('gram/gram_digits', **{'teachers.ema.every': 3, 'teachers.ema.times': 2, 'teachers.ema.momentum': 0.5})
    ema, kept = model.teachers['ema'], []
    for teacher in model.teachers.values():
        teacher.start_from(model.backbone)
    assert torch.equal(ema.anchor.cls_token, model.backbone.cls_token)
    for step in range(1, 11):
        scatter_weights(model.backbone)
        model.after_step(Progress(step, 20))
        kept.append(torch.equal(ema.anchor.cls_token, ema.network.cls_token))
    assert [step for step, equal in enumerate(kept, start=1) if equal] == [3, 6]
    assert 'teachers.ema.anchor.cls_token' in model.state_dict()


def test_ijepa__predicts_each_target_block_from_the_context_alone(images):
    model = tiny('ijepa/ijepa_digits')
    scatter_weights_of_buffers(model.teachers['ema'].network)
    torch.manual_seed(3)
    found = model.loss(images)['loss_feature']
    torch.manual_seed(3)
    mask = model.masking(images, None)
    head = model.objectives['feature'].heads[0]
    target = torch.nn.functional.layer_norm(model.teachers['ema'].network(images).tokens('output'), (24,))
    student = model.backbone(images, mask).tokens('output')
    places, losses = head.pos_embed[0], []
    for image in range(2):
        at = 1 + (~mask.hidden_BL[image]).nonzero()[:, 0]  # after the place of cls, which this network has not
        context = student[image] @ head.embed.weight.T + head.embed.bias + places[at]
        for ids in mask.regions['targets'][image].chunk(4):
            x = torch.cat([context, head.mask_token[0] + places[1 + ids]]).unsqueeze(0)
            for block in head.layers:
                x = block(x)[0]
            predicted = head.predict(head.norm(x[0, -len(ids) :]))
            error = (predicted - target[image, ids]).abs()
            losses.append(torch.where(error < 1, error**2 / 2, error - 0.5))
    torch.testing.assert_close(found, torch.stack(losses).mean(), rtol=1e-9, atol=1e-12)


def test_multi_block_masking__context_without_targets():
    masking = tiny(
        'ijepa/ijepa_digits', **{'backbone.img_size': 56, 'masking.min_visible': 11}
    ).masking  # a grid of 14 × 14
    sizes = set()
    for _ in range(20):
        mask = masking(torch.zeros(8, 3, 56, 56), None)
        targets_BKn = mask.regions['targets'].view(8, 4, -1)
        assert (~mask.hidden_BL).sum(1).unique().numel() == 1 and mask.ids_keep_BV.shape[1] >= 11
        for ids_Kn, hidden_L in zip(targets_BKn, mask.hidden_BL, strict=True):
            assert hidden_L[ids_Kn.flatten()].all()
            assert (
                not hidden_L.view(14, 14)[:, :13].all() and hidden_L.view(14, 14)[:, 13].all()
            )  # a context of 13 × 13
            for ids_n in ids_Kn:
                rows, columns = ids_n // 14, ids_n % 14
                height, width = (int(axis.max() - axis.min()) + 1 for axis in (rows, columns))
                assert height * width == len(ids_n) == ids_n.unique().numel()
                sizes.add((height, width))
    assert (
        all(27 <= height * width <= 42 and 0.7 <= height / width <= 1.6 for height, width in sizes) and len(sizes) > 2
    )


def test_data2vec2__averages_mlp_outputs_and_shares_a_teacher_pass(images):
    model = tiny('data2vec2/data2vec2_digits', **{'objectives.feature.head.noise': 0.0, 'backbone.layer_scale': 0.5})
    ema = model.teachers['ema']
    scatter_weights_of_buffers(ema.network)
    passes = []
    ema.register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))
    torch.manual_seed(3)
    found = model.loss(images)
    assert passes == [2]
    torch.manual_seed(3)
    mask = model.masking(images, None)
    assert mask.hidden_BL.shape == (8, 36) and mask.hidden_BL.unique(dim=0).shape[0] > 4
    outputs, hooks = [], []
    for block in ema.network.layers:  # both blocks are averaged
        hooks.append(block.ffn.register_forward_hook(lambda *args: outputs.append(args[2][:, 1:])))
    ema.network(images)
    targets = []
    for image in range(2):
        layers = [out[image] for out in outputs]
        layers = [(x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt() for x in layers]
        mean = sum(layers) / 2
        targets.append((mean - mean.mean(1, keepdim=True)) / (mean.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt())
    head, losses, summaries = model.objectives['feature'].heads[0], [], []
    for row in range(8):
        hidden_L, target = mask.hidden_BL[row], targets[row // 4]
        one = TokenMask.from_hidden(hidden_L.unsqueeze(0), 9)
        tokens = model.backbone(images[row // 4].unsqueeze(0), one).tokens('output')[0]
        grid = torch.zeros(36, 24, dtype=torch.float64)
        grid[~hidden_L] = tokens[1:]
        x = grid.T.view(1, 24, 6, 6)
        for layer in head.layers:
            y = layer.conv(x).permute(0, 2, 3, 1)
            y = torch.nn.functional.gelu(torch.nn.functional.layer_norm(y, y.shape[-1:])).permute(0, 3, 1, 2)
            x = y + x if y.shape == x.shape else y
        predicted = head.predict(x[0].flatten(1).T)
        losses.append(((predicted - target)[hidden_L] ** 2).sum(1) / 24**0.5)
        summaries.append(((tokens[0] - target.mean(0)) ** 2).mean())
    wanted = torch.stack(losses).mean() * (96 / 24) ** 0.5  # the digits' weight is √96, for width 96
    torch.testing.assert_close(found['loss_feature'], wanted, rtol=1e-9, atol=1e-12)
    cls = torch.stack(summaries).mean() * 0.04 * 96**0.5
    torch.testing.assert_close(found['loss_cls'], cls, rtol=1e-9, atol=1e-12)


def test_inverse_block_masking__shows_squares():
    model = tiny('data2vec2/data2vec2_digits', **{'masking.masking.ratio': 0.5, 'masking.count': 100})
    hidden = model.masking(torch.zeros(2, 3, 24, 24), None).hidden_BL
    assert hidden.sum(1).unique().tolist() == [18]
    shown_B166 = (~hidden).double().view(200, 1, 6, 6)
    squares = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(shown_B166, [1] * 4, value=1.0), 3, 1)
    assert (squares.flatten(1).amax(1) == 1).all()  # the square, cut at the border, is shown in full


@pytest.mark.parametrize('name', ['dbot/dbot_digits', 'dmae/dmae_digits'])
def test_several_masks__serve_other_methods_with_one_teacher_pass(name, images):
    masking = mkd_plugin.get_config(name).model.masking
    cfg = mkd_plugin.get_config(name)
    cfg.model.masking = dict(type='SeveralMasks', count=3, masking=dict(masking))
    model = MODELS.build({**cfg.model, 'data_preprocessor': cfg.data_preprocessor}).double()
    model.begin_training(Progress(0, 10))
    seen = {}
    for key, teacher in model.teachers.items():
        teacher.register_forward_pre_hook(lambda _, args, key=key: seen.setdefault(key, []).append(len(args[0])))
    losses = model.loss(images)
    assert all(value.isfinite() for value in losses.values())
    for key, teacher in model.teachers.items():
        assert seen[key] == [2 if teacher.sees_all else 6]


def test_target_predictor__needs_the_number_of_blocks(images):
    model = tiny('ijepa/ijepa_digits', **{'objectives.feature.head.blocks': 7, 'masking.target_area': (0.11, 0.11)})
    with pytest.raises(ValueError, match='blocks=7: the region has'):
        model.loss(images)
