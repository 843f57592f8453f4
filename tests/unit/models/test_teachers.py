"""Every teacher: frozen, in checkpoints or not; and the ViT teacher with its own pixel statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.networks import ARCH, hidden_masks, poison, scatter_weights
from helpers.teachers import CLIP_MEAN, CLIP_STD, EVERY, SEEDED, context_of, normalised, teacher_of
from PIL import Image
from torch import nn

from mkd_plugin.models.protocols import freeze
from mkd_plugin.models.students import VisibleViT
from mkd_plugin.models.teachers.vit import IMAGENET_MEAN, IMAGENET_STD
from mkd_plugin.registry import build
from mkd_plugin.structures import TokenMask


@pytest.fixture
def network(vit_options):
    return scatter_weights(VisibleViT(drop_path_rate=0.9, **vit_options)).double()


@pytest.mark.parametrize('cfg', EVERY.values(), ids=EVERY)
def test_teacher__has_no_parameters_and_stays_in_eval_mode(cfg, network):
    """A student's drop path of 0.9 would make its copy random in training mode."""
    teacher = teacher_of(cfg, network)
    around = nn.ModuleDict({'teacher': teacher}).train()
    assert list(around.parameters()) == []
    assert [name for name, module in teacher.named_modules() if name and module.training] == []
    assert not teacher.training


@pytest.mark.parametrize('cfg', EVERY.values(), ids=EVERY)
def test_teacher__only_what_no_file_has_is_saved(cfg, network):
    saved = set(teacher_of(cfg, network).state_dict())
    if cfg['type'] in ('BootstrappedTeacher', 'MomentumTeacher'):
        copied = {f'network.{name}' for name in network.state_dict()}
        assert saved == copied | ({'num_promotions'} if cfg['type'] == 'BootstrappedTeacher' else set())
    else:
        assert saved == set()


@pytest.mark.parametrize('in_checkpoints', [True, False])
def test_freeze__same_values_without_parameters(in_checkpoints):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2)).eval()
    images = torch.randn(2, 3, 3, 3)
    wanted, keys = net(images), set(net.state_dict())
    freeze(net, in_checkpoints=in_checkpoints)
    assert list(net.parameters()) == []
    assert set(net.state_dict()) == (keys if in_checkpoints else set())
    assert torch.equal(net(images), wanted)
    assert not net(images).requires_grad
    assert net.double()(images.double()).dtype == torch.float64  # buffers move with the module


@pytest.mark.parametrize('student', ['imagenet', 'none', 'clip'])
@pytest.mark.parametrize('teacher', ['imagenet', 'clip'])
def test_view__equals_normalising_the_stored_image(network, student, teacher):
    statistics = dict(imagenet=(IMAGENET_MEAN, IMAGENET_STD), clip=(CLIP_MEAN, CLIP_STD), none=((0.0,) * 3, (1.0,) * 3))
    raw_BCHW = torch.randint(0, 256, (2, 3, 16, 16)).double()
    mean, std = statistics[teacher]
    own = build({**SEEDED, 'pixel_mean': mean, 'pixel_std': std}, student=context_of(network, *statistics[student]))
    found = own.double().view(normalised(raw_BCHW, *statistics[student]))
    torch.testing.assert_close(found, normalised(raw_BCHW, mean, std), rtol=1e-6, atol=1e-6)


def test_view__same_statistics_cost_nothing(network, images):
    assert teacher_of(SEEDED, network).view(images) is images


def test_view__same_statistics_cost_nothing_with_mmpretrains_preprocessor(build_distiller, images):
    model = build_distiller(
        teachers=dict(boot=SEEDED), data_preprocessor=dict(mean=list(IMAGENET_MEAN), std=list(IMAGENET_STD))
    )
    assert model.teachers['boot'].view(images) is images


@pytest.mark.parametrize('patch_size', [3, 5, 8])
def test_view__resizes_to_the_same_grid_with_antialias(network, images, patch_size):
    """A /14 teacher of a /16 student: 4 × 4 patches on both sides. Against Pillow's bicubic, which antialiases."""
    teacher = teacher_of(dict(SEEDED, patch_size=patch_size), network)
    side = 4 * patch_size
    assert (teacher.network.image_hw, teacher.network.grid) == ((side, side), (4, 4))
    channels = [
        np.asarray(Image.fromarray(channel.float().numpy()).resize((side, side), Image.Resampling.BICUBIC))
        for channel in images.flatten(0, 1)
    ]
    wanted = torch.from_numpy(np.stack(channels)).double().view(3, 3, side, side)
    torch.testing.assert_close(teacher.view(images), wanted, rtol=1e-5, atol=1e-5)
    assert teacher(images, None, ('output',)).tokens('output').shape == (3, 17, 32)


def test_vit_teacher__seed_is_all_that_counts(network):
    state = torch.random.get_rng_state()
    one, same, other = (teacher_of(dict(SEEDED, seed=seed), network) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)  # the run's random state is unchanged
    weights = [dict(teacher.network.named_buffers()) for teacher in (one, same, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]['layers.0.attn.qkv.weight'], weights[2]['layers.0.attn.qkv.weight'])
    torch.manual_seed(3)
    fresh = VisibleViT(arch=ARCH, img_size=16, patch_size=4).double()  # the usual initialisation
    assert torch.equal(weights[0]['layers.0.attn.qkv.weight'], fresh.layers[0].attn.qkv.weight)


def test_vit_teacher__seeing_visible_patches_reads_no_other(network, images):
    hidden_BL = hidden_masks()
    mask = TokenMask.from_hidden(hidden_BL, 4)
    teacher = teacher_of(dict(SEEDED, sees='visible', pixel_mean=CLIP_MEAN), network)
    assert not teacher.sees_all
    found = teacher(poison(images, hidden_BL), mask, ('block:1', 'relation:0'))
    wanted = teacher(images, mask, ('block:1', 'relation:0'))
    assert found.mask is mask
    assert torch.equal(found.tokens('block:1'), wanted.tokens('block:1'))
    assert found.tokens('block:1').isfinite().all()
    assert found.tokens('relation:0').shape == (3, 4, 5, 5)


def test_vit_teacher__seeing_visible_patches_is_not_resized(network):
    """Resizing would mix hidden pixels into visible patches."""
    with pytest.raises(ValueError, match="teacher's img_size=12 differs from the student's 16"):
        teacher_of(dict(SEEDED, sees='visible', patch_size=3), network)


def test_vit_teacher__seeing_all_ignores_the_mask(network, images):
    mask = TokenMask.from_hidden(hidden_masks(), 4)
    teacher = teacher_of(SEEDED, network)
    found = teacher(images, mask, ('output',))
    assert found.mask is None
    assert torch.equal(found.tokens('output'), teacher.network(images).tokens('output'))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            dict(img_size=20),
            r"has a 5 × 5 grid \(img_size=20, patch_size=4\), the student 4 × 4. Set the teacher's img_size=16",
        ),
        (dict(patch_size=8, img_size=16), 'has a 2 × 2 grid'),
        (
            dict(checkpoint='file.pth'),
            r"exactly one of the teacher's checkpoint and seed \(random weights\), got checkpoint=file.pth, seed=3",
        ),
        (dict(seed=None), "exactly one of the teacher's checkpoint and seed"),
        (dict(sees='visible', patch_size=3), 'resizing would mix hidden pixels into visible patches'),
        (dict(sees='hidden'), "sees='hidden': use 'all' or 'visible'"),
        (dict(momentum=0.9), r"no option \['momentum'\]"),
        (dict(pixel_std=[0, 1, 1]), r'pixel_std=\[0, 1, 1\]: give 3 numbers each, std above 0'),
        (dict(pixel_mean=[1, 2]), r'pixel_mean=\[1, 2\], .* give 3 numbers each'),
    ],
)
def test_vit_teacher__wrong_options(network, options, message):
    with pytest.raises(ValueError, match=message):
        teacher_of({**SEEDED, **options}, network)
