"""Load a student from files written as PortableCheckpointHook writes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.networks import ARCH, scatter_weights
from PIL import Image

import mkd_plugin
from mkd_plugin.datasets.loading import BACKGROUND
from mkd_plugin.engine.provenance import describe
from mkd_plugin.interop.student import load_student
from mkd_plugin.models.students import MaskTokenViT, VisibleViT

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
BACKBONE = dict(arch=dict(ARCH, mlp_ratio=4.0), img_size=16, patch_size=4, in_channels=3)


def state_of(student, teacher=None):
    state = {f'backbone.{name}': value for name, value in student.state_dict().items()}
    if teacher is not None:
        state |= {f'teachers.boot.network.{name}': value for name, value in teacher.state_dict().items()}
        state['teachers.boot.num_promotions'] = torch.tensor(1)
    return state


def save_run(path, student, teacher=None, **provenance):
    about = dict(version='0', stage=1, backbone=BACKBONE, pixel_mean=MEAN, pixel_std=STD, teachers=['boot'])
    torch.save(
        dict(meta=dict(epoch=1, mkd_plugin={**about, **provenance}), state_dict=state_of(student, teacher)), path
    )
    return path


@pytest.fixture(params=[VisibleViT, MaskTokenViT])
def network(request, vit_options):
    """A student with trained positions, or with mask tokens, which the plain network does not need."""
    return scatter_weights(request.param(position='learned', drop_path_rate=0.5, **vit_options)).eval()


def features_by_hand(network, images, tap):
    """RGB in [0, 1] → 0 … 255 → normalised as in training → blocks."""
    pixels = torch.stack([(images[:, c] * 255 - MEAN[c]) / STD[c] for c in range(3)], dim=1)
    x = network.embed(pixels, None)
    for block in network.layers:
        x, _ = block(x)
    return network.ln1(x) if tap == 'output' else x


@pytest.mark.parametrize('tap', ['block:-1', 'output'])
@pytest.mark.parametrize('pool', ['mean', 'cls', 'none'])
def test_features__equal_those_of_the_network(tmp_path, network, pool, tap):
    student = load_student(save_run(tmp_path / 'run.pth', network))
    images = torch.rand(2, 3, 16, 16)
    tokens = features_by_hand(network, images, tap)
    wanted = dict(mean=sum(tokens[:, i] for i in range(1, 17)) / 16, cls=tokens[:, 0], none=tokens)[pool]
    torch.testing.assert_close(student.features(images, tap=tap, pool=pool), wanted, rtol=1e-4, atol=1e-5)


def test_forward__is_the_mean_of_the_last_block(tmp_path, network):
    student = load_student(save_run(tmp_path / 'run.pth', network))
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(student(images), student.features(images, tap='block:-1', pool='mean'))
    assert not student.training
    assert not student.backbone.training  # drop path would make features random


def test_load_student__part_of_the_file(tmp_path, vit_options):
    one, other = (scatter_weights(VisibleViT(**vit_options)) for _ in range(2))
    path = save_run(tmp_path / 'run.pth', one, teacher=other)
    for part, source in (('student', one), ('boot', other)):
        loaded = load_student(path, part=part).backbone.state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in source.state_dict().items())


def test_load_student__file_of_a_model(tmp_path, build_distiller):
    """The provenance that the hook writes is enough to rebuild the student."""
    model = build_distiller(data_preprocessor=dict(mean=MEAN, std=STD)).float().eval()
    torch.save(dict(state_dict=model.state_dict(), meta=dict(mkd_plugin=describe(model))), tmp_path / 'run.pth')
    images = torch.rand(2, 3, 16, 16)
    wanted = features_by_hand(model.backbone, images, 'output')
    found = mkd_plugin.load_student(tmp_path / 'run.pth').features(images, tap='output', pool='none')
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(pool='max'), "pool='max': use 'cls', 'mean' or 'none'"),
        (dict(tap='block:3'), "Tap 'block:3' is out of range"),
        (dict(tap='norm'), "Unknown tap 'norm'"),
        (dict(tap='relation:0'), "tap='relation:0': relations cannot be pooled"),
    ],
)
def test_features__wrong_options(tmp_path, vit_options, options, message):
    student = load_student(save_run(tmp_path / 'run.pth', VisibleViT(**vit_options)))
    with pytest.raises(ValueError, match=message):
        student.features(torch.rand(1, 3, 16, 16), **options)


@pytest.mark.parametrize('meta', [{}, dict(meta=dict(epoch=3))], ids=['no meta', 'meta of another program'])
def test_load_student__file_that_does_not_say_what_it_holds(tmp_path, vit_options, meta):
    torch.save(dict(state_dict=state_of(VisibleViT(**vit_options)), **meta), tmp_path / 'run.pth')
    with pytest.raises(
        ValueError, match='was not written by a run with PortableCheckpointHook. Build the network and use'
    ):
        load_student(tmp_path / 'run.pth')


def test_load_student__part_that_is_not_there(tmp_path, vit_options):
    path = save_run(tmp_path / 'run.pth', VisibleViT(**vit_options))
    with pytest.raises(ValueError, match="under the prefix 'teachers.boot.network.'"):
        load_student(path, part='boot')


def test_load_student__provenance_that_does_not_fit(tmp_path, vit_options):
    path = save_run(tmp_path / 'run.pth', VisibleViT(**vit_options), backbone=dict(BACKBONE, patch_size=8))
    with pytest.raises(ValueError, match='another network than its tensors: patch_size 8, which is 4 in the tensors'):
        load_student(path)


def test_load_student__run_of_another_network(tmp_path):
    torch.save(
        dict(state_dict={'w': torch.ones(1)}, meta=dict(mkd_plugin=dict(version='0', stage=None))), tmp_path / 'run.pth'
    )
    with pytest.raises(ValueError, match='does not say which network it holds'):
        load_student(tmp_path / 'run.pth')


@pytest.mark.parametrize(
    'options',
    [
        dict(start_depth=0),
        dict(start=dict(type='ViTTeacher', arch=ARCH, patch_size=4, seed=3)),
    ],
    ids=['cut', 'from a file'],
)
def test_load_student__teacher_0_that_is_not_in_the_file(tmp_path, build_distiller, options):
    """Until the first promotion its network holds the student's first weights, which are not the teacher's."""
    model = build_distiller(teachers=dict(boot=dict(type='BootstrappedTeacher', **options))).float().eval()
    for stage in (0, 1):
        path = tmp_path / f'stage_{stage}.pth'
        torch.save(dict(state_dict=model.state_dict(), meta=dict(mkd_plugin=describe(model))), path)
        if stage == 0:
            with pytest.raises(ValueError, match=r"holds \['student'\], not 'boot'"):
                load_student(path, part='boot')
        model.teachers['boot'].promote(model.backbone)
    images = torch.rand(2, 3, 16, 16)
    wanted = model.teachers['boot'](images * 255, None, ('output',)).tokens('output')  # no preprocessor normalises here
    found = load_student(path, part='boot').features(images, tap='output', pool='none')
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def trained(tmp_path, vit_options):
    return load_student(save_run(tmp_path / 'run.pth', scatter_weights(VisibleViT(**vit_options))))


def test_features__bytes_floats_single_images_and_pil_agree(tmp_path, vit_options):
    student = trained(tmp_path, vit_options)
    pixels = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    wanted = student.features(pixels)
    torch.testing.assert_close(student.features(pixels / 255), wanted)
    torch.testing.assert_close(student.features(pixels[0]), wanted[:1])
    torch.testing.assert_close(student.features([pixels[0], pixels[1]]), wanted)
    assert not wanted.requires_grad
    assert student.features(pixels, gradients=True).requires_grad


def test_features__pil_images_are_resized_and_cropped(tmp_path, vit_options):
    student = trained(tmp_path, vit_options)
    image = Image.fromarray(np.random.default_rng(0).integers(256, size=(40, 60, 3), dtype=np.uint8))
    edge = image.resize((int(60 * 18 / 40), 18), Image.Resampling.BICUBIC)  # 18 = 16 · 256 / 224, rounded
    left, top = (edge.width - 16) // 2, (edge.height - 16) // 2
    crop = torch.from_numpy(np.array(edge.crop((left, top, left + 16, top + 16)))).permute(2, 0, 1)
    torch.testing.assert_close(student.features(image), student.features(crop))
    assert student.features([image, image.convert('L')]).shape == (2, student.backbone.arch.width)


def test_features__other_size_resizes_the_positions(tmp_path, vit_options):
    student = trained(tmp_path, vit_options)
    images = torch.rand(1, 3, 24, 16)
    wider = student.features(images, pool='none')
    assert wider.shape[1] == 1 + 6 * 4
    assert student.features(images[..., :16, :], pool='none').shape[1] == 1 + 4 * 4  # and back again


@pytest.mark.parametrize(
    'image, colour',
    [
        (Image.new('RGBA', (16, 16), (255, 0, 0, 0)), BACKGROUND),
        (Image.fromarray(np.full((16, 16), 40_000, np.uint16)), (156, 156, 156)),
    ],
    ids=['transparent', '16 bits'],
)
def test_features__pil_images_are_read_as_files_are(tmp_path, vit_options, image, colour):
    student = trained(tmp_path, vit_options)
    torch.testing.assert_close(student.features(image), student.features(Image.new('RGB', (16, 16), colour)))


def test_features__other_size_follows_the_weights(tmp_path, vit_options):
    student, images = trained(tmp_path, vit_options), torch.rand(1, 3, 24, 16)
    before = student.features(images)
    assert torch.equal(student.features(images), before)
    with torch.no_grad():
        student.backbone.layers[0].ffn.layers[1].bias += 1
    assert not torch.allclose(student.features(images), before)


def test_features__other_size_of_a_network_that_is_not_square(tmp_path, vit_options):
    options = {**vit_options, 'img_size': (16, 24)}
    backbone = {**BACKBONE, 'img_size': [16, 24]}
    student = load_student(save_run(tmp_path / 'run.pth', VisibleViT(**options), backbone=backbone))
    assert student.features(torch.rand(1, 3, 32, 16), pool='none').shape[1] == 1 + 8 * 4


@pytest.mark.parametrize(
    ('images', 'sentence'),
    [
        (torch.full((1, 3, 16, 16), 200.0), 'Divide bytes by 255'),
        (torch.full((1, 3, 16, 16), -1.5), 'Do not normalise'),
        (torch.zeros(1, 3, 16, 16, dtype=torch.int64), 'got torch.int64'),
        (torch.zeros(1, 4, 16, 16), 'got (1, 4, 16, 16)'),
        (torch.zeros(1, 3, 18, 16), 'The nearest size that can is 16 × 16'),
        ([], 'an empty list'),
        (['photo.jpg'], "got ['str']"),
        ([torch.zeros(3, 16, 16), torch.zeros(3, 8, 8)], 'need one shape'),
    ],
)
def test_features__refuses_what_it_would_misread(tmp_path, vit_options, images, sentence):
    with pytest.raises(ValueError) as raised:
        trained(tmp_path, vit_options).features(images)
    assert sentence in str(raised.value)
