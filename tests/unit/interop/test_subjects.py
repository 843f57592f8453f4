"""Networks for reports: named in a line, read from any format, with the pixels they want."""

from __future__ import annotations

import pytest
import timm
import torch
from helpers.checkpoint_networks import tiny
from helpers.networks import ARCH, VIT, scatter_weights

from mkd_plugin.checkpoint.releases import CLIP, HALF, IMAGENET, RELEASES
from mkd_plugin.checkpoint.write import write_weights
from mkd_plugin.interop.export import export_weights
from mkd_plugin.interop.libraries.huggingface import config_of
from mkd_plugin.interop.libraries.kinds import DISTILLED, PRE_NORM, PROJECTION, QUICK, REGISTERS, SCALE, SHARED
from mkd_plugin.interop.specs import Request, parse_requests
from mkd_plugin.interop.subjects import load_subjects
from mkd_plugin.models.vit import VisionTransformer

MEAN, STD = [123.0, 116.0, 103.0], [58.0, 57.0, 56.0]
# Target of an export, what the network has, the pixels that are taken if nobody says them.
FORMATS = {
    'timm': ('timm', {SCALE}, IMAGENET),
    'DINO and DeiT': ('timm', set(), IMAGENET),
    'DeiT, distilled': ('timm', {DISTILLED}, IMAGENET),
    'DINOv2': ('timm', {SCALE, REGISTERS}, IMAGENET),
    'BEiT': ('timm', {SHARED, SCALE}, IMAGENET),
    'MAE': ('mae', set(), IMAGENET),
    'CLIP': ('openclip', {PRE_NORM, PROJECTION, QUICK}, CLIP),
    'CLIP of Hugging Face': ('hf', {PRE_NORM, PROJECTION, QUICK}, CLIP),
    'ViT of Hugging Face': ('hf', set(), IMAGENET),
    'mmpretrain': ('mmpretrain', set(), IMAGENET),
}


def load(*texts, **options):
    return load_subjects([str(text) for text in texts], **{'known': {}, 'device': 'cpu', **options})


def tokens(network, images_BCHW):
    with torch.no_grad():
        return network.eval()(images_BCHW, taps=('block:-1',)).tokens('block:-1')


@pytest.mark.parametrize(('target', 'features', 'pixels'), FORMATS.values(), ids=FORMATS)
def test_load_subject__file_of_another_format(tmp_path, target, features, pixels):
    """Heads and eps are stated by Hugging Face's config, and have to be told for the others."""
    network = tiny(frozenset(features))
    kind, weights, _ = export_weights(network.state_dict(), network.options, target)
    path = tmp_path / ('model' if kind.config else 'model.pth')
    config = kind.config and config_of(kind.config, network.options)
    write_weights(path, weights, {}, config=config)
    (subject,) = load(path, known={} if config else dict(num_heads=4))
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(tokens(subject.network, images), tokens(network, images))
    assert subject.pixels == pixels
    assert ['pixel statistics' in note for note in subject.notes] == [True]
    (told,) = load(path, known=dict(num_heads=4), pixels='half')
    assert told.pixels == HALF and told.identity != subject.identity


def test_load_subject__own_file_states_its_pixels(tmp_path):
    (subject,) = load(save_run(tmp_path / 'run.pth'), pixels='half')
    assert subject.pixels == (MEAN, STD) and subject.notes == ()
    image = torch.rand(1, 3, 16, 16)
    wanted = (image * 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(subject.normalise(image), wanted)
    assert subject.description['pixel_mean'] == MEAN


def test_load_subject__unknown_pixels(tmp_path):
    with pytest.raises(ValueError, match=r"pixels='mae': use one of \['imagenet', 'clip', 'half'\]"):
        load(save_run(tmp_path / 'run.pth'), pixels='mae')


def save_run(path, teacher=None):
    """As a run of ours writes it."""
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
    """timm's smallest ViT with weights that hide nothing."""
    torch.manual_seed(0)
    network = scatter_weights(timm.create_model('test_vit', num_classes=3)).eval()
    path = tmp_path_factory.mktemp('timm') / 'weights.pth'
    torch.save(network.state_dict(), path)
    return path, network


def test_load_subject__name_of_timm(timm_file):
    """Its name says heads, eps, image size and pixels, and its output is timm's."""
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
        ('test_vitt', "has no model 'test_vitt'. Did you mean"),
        ('test_resnet', 'so it is no plain ViT'),
        ('test_vit2', 'without a cls token'),
        ('vit_tiny_patch16_224', 'does not cover VisionTransformer'),
    ],
)
def test_load_subject__name_of_timm_that_does_not_fit(timm_file, model, message):
    with pytest.raises(ValueError, match=message):
        load(f'timm:{model}={timm_file[0]}')


def test_load_subject__timm_network_that_computes_something_else(timm_file, monkeypatch):
    """Parts that leave no tensor behind are seen by the outputs."""
    path, network = timm_file
    normal = type(network.blocks[0]).forward
    monkeypatch.setattr(type(network.blocks[0]), 'forward', lambda self, x, **more: 1.01 * normal(self, x, **more))
    with pytest.raises(ValueError, match='computes something else than the plain ViT here'):
        load(f'timm:test_vit={path}')


def test_load_subjects__resnet(tmp_path):
    from torchvision.models import resnet18

    torch.save(resnet18().state_dict(), tmp_path / 'r18.pth')
    with pytest.raises(ValueError, match='is of a ResNet, which has neither attention nor tokens'):
        load(tmp_path / 'r18.pth')


def test_load_subjects__file_that_states_nothing(tmp_path):
    """Heads are guessed and said, or given."""
    network = VisionTransformer(**{**VIT, 'position': 'learned'})
    torch.save(network.state_dict(), tmp_path / 'plain.pth')
    (guessed,) = load(tmp_path / 'plain.pth')
    (given,) = load(tmp_path / 'plain.pth', known=dict(num_heads=4))
    assert guessed.network.arch.num_heads == 1
    assert given.network.arch.num_heads == ARCH['num_heads']
    assert [len(subject.notes) for subject in (guessed, given)] == [2, 1]
    assert guessed.identity != given.identity


def test_load_subjects__teacher_of_a_run(tmp_path):
    teacher = VisionTransformer(**VIT)
    path = save_run(tmp_path / 'run.pth', teacher)
    student, found, again = load(path, f'{path}#boot', f'x={path}#student')
    own = teacher.layers[0].attn.qkv.weight
    assert [torch.equal(subject.network.layers[0].attn.qkv.weight, own) for subject in (student, found, again)] == [
        False, True, False,
    ]  # fmt: skip
    assert [subject.name for subject in (student, found, again)] == ['run', 'run#boot', 'x']
    assert student.identity == again.identity != found.identity


def test_parse_requests__names(tmp_path):
    assert [request.name for request in parse_requests(['a/stage_1.pth', 'b/stage_1.pth'])] == [
        'a/stage_1',
        'b/stage_1',
    ]
    with pytest.raises(ValueError, match=r"Several checkpoints are called \['x'\]"):
        parse_requests(['x=a.pth', 'x=b.pth'])


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
def test_request__parts(text, wanted):
    request = Request(text)
    assert (request.name, request.network, str(request.path), request.part) == wanted


def test_request__file_with_an_equals_sign(tmp_path):
    (tmp_path / 'lr=1.pth').touch()
    request = Request(f'x={tmp_path}/lr=1.pth')
    assert (request.name, request.network, request.path) == ('x', None, tmp_path / 'lr=1.pth')


def test_request__released_file_is_known_by_its_name():
    assert Request('folder/ViT-B-16.pt').release is RELEASES['clip_base']
    assert Request('timm:test_vit=ViT-B-16.pt').release is None
    with pytest.raises(ValueError, match="'mae' is no network. .* NETWORK being timm:MODEL or one of"):
        Request('x=mae=file.pth')
