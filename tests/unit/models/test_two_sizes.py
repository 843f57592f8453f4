"""TwoSizeViT: each part of a batch equals a PlainViT of its size, and two resolutions train in one run."""

from __future__ import annotations

import pytest
import torch
from helpers.networks import scatter_weights
from helpers.rows import tiny
from torch.nn import functional as F

from mkd_plugin.checkpoint.resize import resize_positions
from mkd_plugin.models.students import PlainViT, TwoSizeViT

TAPS = ('output', 'block:0')
SIZES = dict(arch=dict(width=16, depth=2, num_heads=2), patch_size=4)
POSITIONS = dict(
    learned=dict(position='learned'),
    sincos=dict(position='sincos', num_registers=2),
    rope=dict(position='none', rope='dinov3', cls_token=False),
)


@pytest.fixture(params=POSITIONS)
def student(request):
    return scatter_weights(TwoSizeViT(img_size=16, large_size=32, **SIZES, **POSITIONS[request.param])).double().eval()


def plain_of(student, side):
    """A PlainViT of one size with the same weights; the table of positions is that of the small size, resized."""
    plain = PlainViT(**{**student.options, 'img_size': side}).double().eval()
    weights = dict(student.state_dict())
    if 'pos_embed' in weights:
        weights['pos_embed'] = resize_positions(weights['pos_embed'], student.grid, plain.grid, student.num_placed)
    plain.load_state_dict(weights)
    return plain


@torch.no_grad()
def test_forward__each_part_is_a_vit_of_its_size(student):
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    found, prefix = student(images, taps=TAPS), student.num_prefix
    large = plain_of(student, 32)(images[:2], taps=TAPS)
    reduced = F.interpolate(images[2:], size=16, mode='bilinear', antialias=True)
    small = plain_of(student, 16)(reduced, taps=TAPS)
    for tap in TAPS:
        tokens = found.tokens(tap)
        torch.testing.assert_close(tokens[2:], small.tokens(tap))
        wanted = large.tokens(tap)
        torch.testing.assert_close(tokens[:2, :prefix], wanted[:, :prefix])
        maps = wanted[:, prefix:].transpose(1, 2).unflatten(2, (8, 8))
        maps = F.interpolate(maps, size=4, mode='bilinear', antialias=True)
        torch.testing.assert_close(tokens[:2, prefix:], maps.flatten(2).transpose(1, 2), rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_forward__small_images_are_a_plain_vits(student):
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(student(images).tokens('output'), plain_of(student, 16)(images).tokens('output'))


def test_distiller__two_resolutions_in_one_step():
    two = dict(type='TwoSizeViT', large_size=48)
    model = tiny('multi_teacher/radio_digits', **{f'backbone.{name}': value for name, value in two.items()})
    images = torch.randn(6, 3, 48, 48, dtype=torch.float64)
    results = model.loss(images)
    for image, part in ((0, 'large'), (5, 'small')):  # both sizes reach the loss
        changed = images.clone()
        changed[image] += 1
        assert not torch.equal(model.loss(changed)['loss_mae'], results['loss_mae']), part
    sum(value for name, value in results.items() if name.startswith('loss')).backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(large_size=16), 'large_size=16: it must be larger than img_size=16'),
        (dict(large_size=30), 'and a multiple of patch_size=4'),
        (dict(large_size=32, share=1.0), 'share=1.0: it must lie between 0 and 1. For one size, use a PlainViT'),
        (dict(large_size=32, relative_position='shared', position='none'), 'no relative position bias'),
    ],
)
def test_two_size_vit__refuses(options, message):
    with pytest.raises(ValueError, match=message):
        TwoSizeViT(img_size=16, **SIZES, **options)


def test_tap_spec__relations_are_refused():
    with pytest.raises(ValueError, match="'relation:0': TwoSizeViT has tokens only"):
        TwoSizeViT(img_size=16, large_size=32, **SIZES).tap_spec('relation:0')
