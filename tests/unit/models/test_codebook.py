"""VQ-KD's head: codes, loss, gradient and moving averages as in mmpretrain's quantizer and as in the written-out formula."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from mmpretrain.models.utils import NormEMAVectorQuantizer
from torch import nn
from torch.nn import functional as F

import mkd_plugin
from mkd_plugin.models.heads import codebook as heads_codebook
from mkd_plugin.models.heads.codebook import Codebook, CodebookDecoder
from mkd_plugin.models.protocols import Progress
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import RegionTokens, TokenFeatures, Tokens


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), dim=-1)


def codebook(size: int = 12, width: int = 5) -> Codebook:
    book = Codebook(size=size, width=width, decay=0.9).double()
    book.codes_KC.copy_(unit(size, width, seed=7))
    book.begun = True
    return book.train()


def test_codebook__three_steps_equal_mmpretrains_quantizer():
    book = codebook()
    theirs = NormEMAVectorQuantizer(12, 5, beta=1.0, decay=0.9, kmeans_init=False).double().train()
    theirs.embedding.weight.data.copy_(book.codes_KC)
    for step in range(3):
        raw = torch.randn(2, 5, 2, 3, dtype=torch.float64, requires_grad=True)
        wanted, penalty, ids = theirs(raw)
        (penalty + wanted.pow(3).sum()).backward()
        own = raw.detach().clone().requires_grad_()
        before = book.codes_KC.clone()
        z_NC = F.normalize(own.permute(0, 2, 3, 1).reshape(-1, 5), dim=-1)
        nearest_NC = book(z_NC.detach())
        straight_NC = z_NC + (nearest_NC - z_NC).detach()
        ((z_NC - nearest_NC).square().mean() + straight_NC.pow(3).sum()).backward()
        torch.testing.assert_close(nearest_NC, before[ids], rtol=0, atol=0)
        torch.testing.assert_close(straight_NC.view(2, 2, 3, 5).permute(0, 3, 1, 2), wanted, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(own.grad, raw.grad, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(book.codes_KC, theirs.embedding.weight.data, rtol=1e-12, atol=1e-12)
        assert not torch.equal(book.codes_KC, before), step


def test_codebook__one_step_by_hand():
    book = Codebook(size=3, width=2, decay=0.5).double().train()
    book.codes_KC.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    book.begun = True
    z_NC = torch.tensor([[0.6, 0.8], [0.0, 1.0], [0.8, 0.6]], dtype=torch.float64)
    assert book(z_NC).tolist() == [[0, 1], [0, 1], [1, 0]]
    second = torch.tensor([0.6, 1.8]) / (0.36 + 3.24) ** 0.5  # of the sum of its two inputs
    wanted = torch.stack([torch.tensor([0.9, 0.3]), (torch.tensor([0.0, 1.0]) + second) / 2, torch.tensor([-1.0, 0.0])])
    torch.testing.assert_close(book.codes_KC.float(), F.normalize(wanted, dim=-1))
    book.eval()
    before = book.codes_KC.clone()
    book(z_NC)
    assert torch.equal(book.codes_KC, before)


def test_codebook__two_processes_move_it_like_one(monkeypatch):
    inputs_NC, together = unit(20, 5, seed=3), codebook()
    together(inputs_NC)
    others: list[torch.Tensor] = []
    monkeypatch.setattr(heads_codebook, 'all_reduce', lambda value: others.append(value.clone()))
    codebook()(inputs_NC[12:])
    monkeypatch.setattr(heads_codebook, 'all_reduce', lambda value: value.add_(others.pop(0)))
    own = codebook()
    own(inputs_NC[:12])
    torch.testing.assert_close(own.codes_KC, together.codes_KC, rtol=1e-12, atol=1e-12)


def test_codebook__begins_as_mmpretrains_k_means(monkeypatch):
    kmeans = sys.modules[NormEMAVectorQuantizer.__module__].kmeans
    z_NC = unit(200, 5, seed=4)
    monkeypatch.setitem(
        kmeans.__globals__, 'sample_vectors', lambda samples, count: samples[torch.arange(count) * 200 // count]
    )
    wanted_KC, _ = kmeans(z_NC, 12, 10, use_cosine_sim=True)
    book = Codebook(size=12, width=5, decay=0.9).double().train()
    wanted_NC = wanted_KC[(z_NC @ wanted_KC.T).argmax(1)]
    torch.testing.assert_close(book(z_NC), wanted_NC, rtol=1e-12, atol=1e-12)
    assert len(wanted_NC.unique(dim=0)) == 12


def test_codebook__begins_once_and_not_after_loading():
    first, z_NC = Codebook(size=4, width=3, decay=0.9).train(), unit(50, 3).float()
    first(z_NC)
    resumed = Codebook(size=4, width=3, decay=0.9).train()
    resumed.load_state_dict({}, strict=False)
    assert not resumed.begun
    resumed.load_state_dict(first.state_dict())
    second = unit(50, 3, seed=1).float()
    assert torch.equal(resumed(second), first(second)) and torch.equal(resumed.codes_KC, first.codes_KC)
    first.reset_parameters()
    assert not torch.equal(first(second), resumed(second))  # of new k-means


def test_codebook__more_codes_than_vectors():
    book = Codebook(size=9, width=3, decay=0.9).train()
    book(unit(4, 3).float())
    torch.testing.assert_close(book.codes_KC.norm(dim=1), torch.ones(9))


def head(**options) -> CodebookDecoder:
    torch.manual_seed(0)
    sizes = dict(codes=6, code_width=3, depth=1, width=8, num_heads=2)
    found = CodebookDecoder(in_width=4, out_width=5, grid=(2, 2), **{**sizes, **options}).double().train()
    found.codebook.begun = True
    return found


def features(tokens_BND: torch.Tensor) -> TokenFeatures:
    return TokenFeatures({'output': Tokens(tokens_BND)}, num_prefix=1)


ALL = RegionTokens('all', False, torch.arange(4).expand(3, 4))


def test_codebook_decoder__is_the_written_out_formula():
    decoder = head(commitment=0.7)
    tokens_BND = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    codes_KC = decoder.codebook.codes_KC.clone()
    found = decoder(features(tokens_BND), ['output'], ALL)
    first, _, second = decoder.encode
    z_BLC = second(torch.tanh(first(tokens_BND[:, 1:])))
    z_BLC = z_BLC / z_BLC.norm(dim=-1, keepdim=True)
    distances_BLK = (z_BLC.unsqueeze(2) - codes_KC).square().sum(-1)
    chosen_BLC = codes_KC[distances_BLK.argmin(-1)]
    x_BLD = decoder.decoder.embed(chosen_BLC) + decoder.decoder.pos_embed[:, 1:]
    block = decoder.decoder.layers[0]
    x_BLD, _ = block(x_BLD)
    first, _, second = decoder.decoder.predict
    wanted = second(torch.tanh(first(decoder.decoder.norm(x_BLD))))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    penalty = 0.7 * (z_BLC - chosen_BLC).square().mean(-1)
    torch.testing.assert_close(decoder.penalty_BR, penalty, rtol=1e-12, atol=1e-12)
    # straight-through: the gradient of the prediction reaches the student as if the codes were its own vectors
    (gradient,) = torch.autograd.grad(found.square().sum(), tokens_BND, retain_graph=True)
    leaf_BLC = chosen_BLC.detach().requires_grad_()
    x_BLD, _ = block(decoder.decoder.embed(leaf_BLC) + decoder.decoder.pos_embed[:, 1:])
    (at_codes,) = torch.autograd.grad(second(torch.tanh(first(decoder.decoder.norm(x_BLD)))).square().sum(), leaf_BLC)
    (through,) = torch.autograd.grad(z_BLC, tokens_BND, at_codes)
    torch.testing.assert_close(gradient, through, rtol=1e-10, atol=1e-12)
    assert gradient[:, 1:].any() and not gradient[:, 0].any()


def test_codebook_decoder__reads_a_region_and_needs_every_patch():
    decoder = head().eval()
    tokens_BND = torch.randn(3, 5, 4, dtype=torch.float64)
    everything, penalty = decoder(features(tokens_BND), ['output'], ALL), decoder.penalty_BR
    some = RegionTokens('hidden', False, torch.tensor([[2, 0]]).expand(3, 2))
    torch.testing.assert_close(decoder(features(tokens_BND), ['output'], some), everything[:, [2, 0]])
    torch.testing.assert_close(decoder.penalty_BR, penalty[:, [2, 0]])
    with pytest.raises(ValueError, match='needs all 4 patches, but the student computes 3. Use a PlainViT'):
        decoder(features(tokens_BND[:, :4]), ['output'], ALL)


@pytest.mark.parametrize('options', [dict(codes=1), dict(decay=1.0), dict(decay=-0.1)])
def test_codebook_decoder__wrong_options(options):
    with pytest.raises(ValueError, match='use at least two codes, and a decay from 0 to below 1'):
        head(**options)


def model(**options) -> nn.Module:
    torch.manual_seed(0)
    cfg = mkd_plugin.get_config('fd/vqkd_digits')
    cfg.merge_from_dict(options)
    network = MODELS.build({**cfg.model, 'data_preprocessor': cfg.data_preprocessor}).double().train()
    network.begin_training(Progress(0, 2))
    network.objectives['feature'].heads[0].codebook.begun = True
    return network


def test_config__loss_is_cosine_plus_commitment():
    network, images = model(), torch.randn(4, 3, 24, 24, dtype=torch.float64)
    objective = network.objectives['feature']
    (decoder,) = objective.heads
    codes_KC = decoder.codebook.codes_KC.clone()
    loss = network.loss(images)['loss_feature']
    copy.deepcopy(network)
    decoder.codebook.codes_KC.copy_(codes_KC)
    with torch.no_grad():
        student = network.backbone(images)
        wanted = network.teachers['teacher'](images, None, ['output']).taps['output'].at(slice(1, None))
        prediction = decoder(student, ['output'], RegionTokens('all', False, torch.arange(36).expand(4, 36)))
    cosine = (F.normalize(prediction, dim=-1) * F.normalize(wanted, dim=-1)).sum(-1)
    assert loss.item() == pytest.approx((1 - cosine).mean().item() + decoder.penalty_BR.mean().item(), rel=1e-10)
    other = model(**{'model.objectives.feature.loss': dict(type='MSELoss')})  # a vector per token
    assert other.loss(images)['loss_feature'].item() == pytest.approx(
        (prediction - wanted).square().mean().item() + decoder.penalty_BR.mean().item(), rel=1e-10
    )


def test_config__codes_are_saved_and_drawn_anew():
    network = model()
    (decoder,) = network.objectives['feature'].heads
    assert 'objectives.feature.heads.0.codebook.codes_KC' in network.state_dict()
    assert 'codes_KC' not in dict(decoder.codebook.named_parameters())
    before = decoder.codebook.codes_KC.clone()
    network.objectives['feature'].reset_heads()
    assert not torch.equal(decoder.codebook.codes_KC, before)
    torch.testing.assert_close(decoder.codebook.codes_KC.norm(dim=1), torch.ones(64, dtype=torch.float64))
