"""Models opened from any format, by a line of text, with their pixel statistics."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from helpers.checkpoint_networks import tiny
from helpers.networks import ARCH, VIT, scatter_weights

from mkd_plugin.checkpoint.releases import CLIP_PIXELS, HALF_PIXELS, IMAGENET_PIXELS, RELEASES
from mkd_plugin.checkpoint.write import write_weights
from mkd_plugin.interop.export import DISTILLED, PRE_NORM, PROJECTION, QUICK, REGISTERS, SCALE, SHARED, export_weights
from mkd_plugin.interop.open_model import open_models
from mkd_plugin.interop.specs import ModelSpec, parse_specs
from mkd_plugin.models.vit import VisionTransformer

MEAN, STD = [123.0, 116.0, 103.0], [58.0, 57.0, 56.0]
# Target of an export, what the network has, the pixels that are taken if nobody says them.
FORMATS = {
    'timm': ('timm', {SCALE}, IMAGENET_PIXELS),
    'DINO and DeiT': ('timm', set(), IMAGENET_PIXELS),
    'DeiT, distilled': ('timm', {DISTILLED}, IMAGENET_PIXELS),
    'DINOv2': ('timm', {SCALE, REGISTERS}, IMAGENET_PIXELS),
    'BEiT': ('timm', {SHARED, SCALE}, IMAGENET_PIXELS),
    'MAE': ('mae', set(), IMAGENET_PIXELS),
    'CLIP': ('openclip', {PRE_NORM, PROJECTION, QUICK}, CLIP_PIXELS),
    'CLIP of Hugging Face': ('hf', {PRE_NORM, PROJECTION, QUICK}, CLIP_PIXELS),
    'ViT of Hugging Face': ('hf', set(), IMAGENET_PIXELS),
    'mmpretrain': ('mmpretrain', set(), IMAGENET_PIXELS),
}


def load(*texts, **options):
    return open_models([str(text) for text in texts], **{'known': {}, 'device': 'cpu', **options})


def tokens(network, images_BCHW):
    with torch.no_grad():
        return network.eval()(images_BCHW, taps=('block:-1',)).tokens('block:-1')


@pytest.mark.parametrize(('target', 'features', 'pixels'), FORMATS.values(), ids=FORMATS)
def test_open_model__file_of_another_format(tmp_path, target, features, pixels):
    """Heads and eps are in Hugging Face's config, and must be given for the other formats."""
    network = tiny(frozenset(features))
    foreign, weights, _ = export_weights(network.state_dict(), network.options, target)
    config = foreign.library.config(foreign.name, network.options) if target == 'hf' else None
    path = tmp_path / ('model' if config else 'model.pth')
    write_weights(path, weights, {}, files={'config.json': json.dumps(config)} if config else None)
    (model,) = load(path, known={} if config else dict(num_heads=4))
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(tokens(model.network, images), tokens(network, images))
    assert model.pixels == pixels
    assert ['pixel statistics' in note for note in model.notes] == [True]
    (told,) = load(path, known=dict(num_heads=4), pixels='half')
    assert told.pixels == HALF_PIXELS and told.identity != model.identity


def test_open_model__own_file_states_its_pixels(tmp_path):
    (model,) = load(save_run(tmp_path / 'run.pth'), pixels='half')
    assert model.pixels == (MEAN, STD) and model.notes == ()
    image = torch.rand(1, 3, 16, 16)
    wanted = (image * 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(model.normalise(image), wanted)
    assert model.description['pixel_mean'] == MEAN


def test_open_model__unknown_pixels(tmp_path):
    with pytest.raises(ValueError, match=r"pixels='mae': use one of \['imagenet', 'clip', 'half'\]"):
        load(save_run(tmp_path / 'run.pth'), pixels='mae')


def save_run(path, teacher=None):
    """Save a checkpoint as a run writes it."""
    network = scatter_weights(VisionTransformer(**VIT))
    about = dict(version='0', backbone=network.options, pixel_mean=MEAN, pixel_std=STD)
    state = {f'backbone.{name}': value for name, value in network.state_dict().items()}
    if teacher is not None:
        about['teachers'] = ['boot']
        state |= {f'teachers.boot.network.{name}': value for name, value in teacher.state_dict().items()}
    torch.save(dict(meta=dict(mkd_plugin=about), state_dict=state), path)
    return path


@pytest.fixture(scope='module')
def timm_file(tmp_path_factory):
    """Save timm's smallest ViT with weights under which every mistake shows."""
    torch.manual_seed(0)
    network = scatter_weights(timm.create_model('test_vit', num_classes=3)).eval()
    path = tmp_path_factory.mktemp('timm') / 'weights.pth'
    torch.save(network.state_dict(), path)
    return path, network


def test_open_model__name_of_timm(timm_file):
    """The name determines heads, eps, image size and pixels, and the output is timm's."""
    path, network = timm_file
    named, called = load(f'timm:test_vit={path}', f'before=timm:test_vit={path}')
    assert [named.name, called.name] == ['timm:test_vit', 'before']
    assert named.network.arch.num_heads == 2  # by the width it would be 1
    assert named.pixels == (tuple([127.5] * 3), tuple([127.5] * 3))
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        wanted = network.forward_features(images)
        found = named.network(images, taps=('output',)).tokens('output')
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        ('test_vitt', "has no model 'test_vitt'. The nearest names: "),
        ('test_resnet', 'so it is not a plain ViT'),
        ('test_vit2', 'without a cls token'),
        ('vit_tiny_patch16_224', 'does not cover VisionTransformer'),
    ],
)
def test_open_model__name_of_timm_that_does_not_fit(timm_file, model, message):
    with pytest.raises(ValueError, match=message):
        load(f'timm:{model}={timm_file[0]}')


def test_open_model__timm_network_that_computes_something_else(timm_file, monkeypatch):
    """Parts without tensors are detected by comparing outputs."""
    path, network = timm_file
    normal = type(network.blocks[0]).forward
    monkeypatch.setattr(type(network.blocks[0]), 'forward', lambda self, x, **more: 1.01 * normal(self, x, **more))
    with pytest.raises(ValueError, match='computes something else than the plain ViT here'):
        load(f'timm:test_vit={path}')


def test_open_models__resnet(tmp_path):
    from torchvision.models import resnet18

    torch.save(resnet18().state_dict(), tmp_path / 'r18.pth')
    with pytest.raises(ValueError, match='holds a ResNet, which has neither attention nor tokens'):
        load(tmp_path / 'r18.pth')


def test_open_models__file_that_states_nothing(tmp_path):
    """The number of heads is guessed and noted, or given."""
    network = VisionTransformer(**{**VIT, 'position': 'learned'})
    torch.save(network.state_dict(), tmp_path / 'plain.pth')
    (guessed,) = load(tmp_path / 'plain.pth')
    (given,) = load(tmp_path / 'plain.pth', known=dict(num_heads=4))
    assert guessed.network.arch.num_heads == 1
    assert given.network.arch.num_heads == ARCH['num_heads']
    assert [len(model.notes) for model in (guessed, given)] == [2, 1]
    assert guessed.identity != given.identity


def test_open_models__teacher_of_a_run(tmp_path):
    teacher = VisionTransformer(**VIT)
    path = save_run(tmp_path / 'run.pth', teacher)
    student, found, again = load(path, f'{path}#boot', f'x={path}#student')
    own = teacher.layers[0].attn.qkv.weight
    assert [torch.equal(model.network.layers[0].attn.qkv.weight, own) for model in (student, found, again)] == [
        False, True, False,
    ]  # fmt: skip
    assert [model.name for model in (student, found, again)] == ['run', 'run#boot', 'x']
    assert student.identity == again.identity != found.identity


def test_parse_specs__names(tmp_path):
    assert [spec.name for spec in parse_specs(['a/stage_1.pth', 'b/stage_1.pth'])] == [
        'a/stage_1',
        'b/stage_1',
    ]
    with pytest.raises(ValueError, match=r"Several checkpoints are called \['x'\]"):
        parse_specs(['x=a.pth', 'x=b.pth'])


@pytest.mark.parametrize(
    ('text', 'wanted'),
    [
        ('run/file.pth', ('file', None, 'run/file.pth', None)),
        ('file.pth#boot', ('file#boot', None, 'file.pth', 'boot')),
        ('x=file.pth#boot', ('x', None, 'file.pth', 'boot')),
        ('mae_base=file.pth', ('mae_base', 'mae_base', 'file.pth', None)),
        ('x=mae_base=file.pth', ('x', 'mae_base', 'file.pth', None)),
        ('x=timm:vit_base_patch16_224.dino=a/b.pth', ('x', 'timm:vit_base_patch16_224.dino', 'a/b.pth', None)),
    ],
)
def test_model_spec__parts(text, wanted):
    spec = ModelSpec(text)
    assert (spec.name, spec.network, str(spec.path), spec.part) == wanted


def test_model_spec__file_with_an_equals_sign(tmp_path):
    (tmp_path / 'lr=1.pth').touch()
    spec = ModelSpec(f'x={tmp_path}/lr=1.pth')
    assert (spec.name, spec.network, spec.path) == ('x', None, tmp_path / 'lr=1.pth')


def test_model_spec__released_file_is_known_by_its_name():
    assert ModelSpec('folder/ViT-B-16.pt').release is RELEASES['clip_base']
    assert ModelSpec('timm:test_vit=ViT-B-16.pt').release is None
    with pytest.raises(ValueError, match="'mae' is not a known network. .* NETWORK timm:MODEL or one of"):
        ModelSpec('x=mae=file.pth')
