"""Options for GPUs with little memory: bfloat16, gradient accumulation, activation checkpointing."""

from __future__ import annotations

import pytest
import torch
from helpers.networks import DBOT, hidden_masks
from mmengine.optim import OptimWrapper
from mmpretrain.structures import DataSample


def losses_of(model, images, samples) -> torch.Tensor:
    return sum(value for name, value in model.loss(images, samples).items() if name.startswith('loss'))


@pytest.fixture
def samples():
    return [DataSample().set_mask(row) for row in hidden_masks(4)]


@pytest.fixture
def images():
    return torch.randn(4, 3, 16, 16, dtype=torch.float64)


def test_accumulation__two_halves_are_the_whole_batch(build_distiller, images, samples):
    model = build_distiller()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    updated = []
    for counts in (1, 2):
        model.load_state_dict(start)
        wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0), accumulative_counts=counts)
        for part in torch.arange(4).chunk(counts):
            chosen = [samples[index] for index in part]
            wrapper.update_params(losses_of(model, images[part], chosen))
        updated.append({name: value.clone() for name, value in model.state_dict().items()})
    assert any(not torch.equal(start[name], value) for name, value in updated[0].items())
    for name, value in updated[0].items():
        torch.testing.assert_close(updated[1][name], value, rtol=0, atol=1e-12)


def test_bfloat16__loss_and_gradients_are_those_of_float32_but_for_rounding(build_distiller, images, samples):
    model, images = build_distiller().float(), images.float()
    plain = losses_of(model, images, samples)
    wanted = torch.autograd.grad(plain, [p for p in model.parameters() if p.requires_grad])
    with torch.autocast('cpu', torch.bfloat16):
        rounded = losses_of(model, images, samples)
    found = torch.autograd.grad(rounded, [p for p in model.parameters() if p.requires_grad])
    assert rounded.dtype == torch.float32 and rounded != plain
    torch.testing.assert_close(rounded, plain, rtol=0.02, atol=0)
    wanted, found = (torch.cat([grad.flatten() for grad in grads]) for grads in (wanted, found))
    assert found.dtype == torch.float32 and torch.nn.functional.cosine_similarity(wanted, found, dim=0) > 0.99


@pytest.mark.parametrize('kind', [True, 'selective'])
@pytest.mark.parametrize('layer_scale', [None, 0.1])
def test_activation_checkpointing__same_loss_and_gradients_in_a_whole_step(
    build_distiller, images, samples, kind, layer_scale
):
    """Student and decoder together, with drop path, whose random numbers must repeat."""
    gradients = []
    for again in (False, kind):
        torch.manual_seed(0)
        options = dict(drop_path_rate=0.5, activation_checkpointing=again, layer_scale=layer_scale)
        backbone = dict(DBOT['backbone'], **options)
        head = dict(DBOT['objectives']['feature']['head'], activation_checkpointing=again)
        model = build_distiller(backbone=backbone, objective=dict(head=head)).train()
        loss = losses_of(model, images, samples)
        gradients.append([loss, *torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)
