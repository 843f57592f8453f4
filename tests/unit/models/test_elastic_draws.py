"""Masks and stochastic depth of the global batch are the same for any number of processes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from helpers.launches import count_launches

from mkd_plugin.models.protocols import StudentContext, Term
from mkd_plugin.models.students import MaskTokenViT
from mkd_plugin.models.vit.block import DropPath
from mkd_plugin.registry import build
from mkd_plugin.structures import QueryKey, RegionTokens
from mkd_plugin.utils.draws import STEP, start_step

MASKINGS = dict(
    random=dict(type='RandomMasking', ratio=0.6),
    squares=dict(type='RandomMasking', ratio=0.75, unit=2),
    sampled=dict(type='SampledMasking', ratio=0.75, predicted=0.25),
    blocks=dict(type='BlockMasking', ratio=0.5, min_block=2),
    exact_blocks=dict(type='ExactBlockMasking', ratio=0.5, min_block=2),
    inverse_blocks=dict(type='InverseBlockMasking', ratio=0.75),
    attention=dict(type='AttentionMasking', teacher='mim', ratio=0.75),
    redundancy=dict(type='RedundancyMasking', teacher='mim', at=(0,)),
)


@pytest.fixture(autouse=True)
def no_step():
    yield
    start_step(None)


def features_of(images_B1HW):
    """Attention and tokens of a teacher, which depend on the image."""
    draws = [torch.Generator().manual_seed(int(image.sum())) for image in images_B1HW]
    keys = torch.stack([torch.randn(1, 65, 4, generator=draw) for draw in draws])
    logits = QueryKey(keys[:, :, :1], keys, 0.5)
    tokens = SimpleNamespace(taps={'logit:-1': logits}, num_prefix=1, tokens=lambda tap: keys[:, 0])
    return lambda name: tokens


@pytest.mark.parametrize('ranks', [2, 4])
@pytest.mark.parametrize('masking', MASKINGS.values(), ids=MASKINGS)
def test_masking__draws_its_rows_of_the_global_batch(masking, ranks):
    network = MaskTokenViT(arch=dict(width=8, depth=1, num_heads=1), img_size=32, patch_size=4, in_channels=1)
    masking = build(masking, student=StudentContext(network, (0.0,), (1.0,)))
    images = torch.arange(8.0).view(8, 1, 1, 1)

    def draw(rank, ranks, seed=7):
        start_step(seed, rank=rank, ranks=ranks)
        own = images[rank::ranks]
        mask = masking(own, features_of(own))
        return torch.cat([mask.hidden_BL.long(), *mask.regions.values()], dim=1)

    whole = draw(0, 1)
    assert len(whole.unique(dim=0)) == 8
    assert torch.equal(draw(0, 1, seed=8), whole) == (type(masking).__name__ == 'RedundancyMasking')
    for rank in range(ranks):
        assert torch.equal(draw(rank, ranks), whole[rank::ranks])


@pytest.mark.parametrize('ranks', [2, 4])
def test_drop_path__skips_its_rows_of_the_global_batch(ranks):
    drop_path = DropPath([0.0, 0.3, 0.6])
    start_step(7)
    whole = drop_path(torch.zeros(64, 1, 1))
    assert [round(float((kept == 0).float().mean()), 1) for kept in whole] == [0.0, 0.3, 0.6]
    for rank in range(ranks):
        start_step(7, rank=rank, ranks=ranks)
        own = drop_path(torch.zeros(64 // ranks, 1, 1))
        assert all(torch.equal(mine, all_[:, rank::ranks]) for mine, all_ in zip(own, whole, strict=True))


def test_build_distiller__names_the_draws_of_every_network(build_distiller):
    model = build_distiller()
    names = [module.name for module in model.modules() if isinstance(module, DropPath)]
    assert len(set(names)) == len(names) >= 2 and 'backbone.drop_path' in names


def test_draws__of_a_step_launch_no_more_than_torchs_generator(build_distiller, images):
    model = build_distiller()
    plain = count_launches(lambda: model.loss(images))
    start_step(7)
    assert count_launches(lambda: model.loss(images)) == plain


def test_term__processes_count_as_their_tokens(monkeypatch):
    """Three processes with 1, 5 and no tokens: the mean over them is that over the six tokens."""
    losses = [torch.rand(2, 3) for _ in range(3)]
    weights = [torch.zeros(2, 3) for _ in range(3)]
    weights[0][0, 0], weights[1][:], weights[1][1, 2] = 1, 1, 0
    monkeypatch.setattr('mkd_plugin.models.protocols.all_reduce', lambda value, op: value.fill_(6 / 3))
    monkeypatch.setattr(STEP, 'ranks', 3)
    terms = [
        Term((loss,), RegionTokens('hidden', False, torch.zeros(2, 3, dtype=torch.long), weight), 2.0)
        for loss, weight in zip(losses, weights, strict=True)
    ]
    wanted = 2 * sum((loss * weight).sum() for loss, weight in zip(losses, weights, strict=True)) / 6
    torch.testing.assert_close(sum(term.mean() for term in terms) / 3, wanted)
