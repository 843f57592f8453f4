"""Every release's network fits the names and shapes of its manifest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from mkd_plugin.checkpoint.formats import FORMATS
from mkd_plugin.checkpoint.load import convert_weights, fill_network
from mkd_plugin.checkpoint.releases import RELEASES
from mkd_plugin.models.vit import VisionTransformer

MANIFESTS = Path(__file__).resolve().parents[2] / 'manifests'
WITH_MANIFEST = [name for name, entry in RELEASES.items() if entry.manifest]
HUGGING_FACE = {
    'vit': ('hf_vit', dict(norm_eps=1e-12), ['pooler.dense.weight', 'pooler.dense.bias']),
    'mae': ('hf_mae', dict(norm_eps=1e-12), None),
    'clip': ('hf_clip', dict(pre_norm=True, norm_eps=1e-5, activation='quick_gelu', projection=512), []),
}


def read_manifest(name: str) -> dict[str, torch.Tensor]:
    """Build a state dict on the meta device from a manifest."""
    found, told = {}, None
    for line in (MANIFESTS / f'{name}.txt').read_text().splitlines():
        if line.startswith('#'):
            told = re.search(r'tensors: (\d+)', line) or told
            continue
        pattern, shape = line.split()
        sizes = () if shape == 'scalar' else tuple(map(int, shape.split('x')))
        span = re.search(r'\{(\d+)\.\.(\d+)\}', pattern)
        for number in range(int(span[1]), int(span[2]) + 1) if span else (None,):
            full = pattern if number is None else pattern.replace(span[0], str(number))
            found[full] = torch.empty(sizes, device='meta')
    assert len(found) == int(told[1])
    return found


def network_on_meta(**options) -> VisionTransformer:
    with torch.device('meta'):
        return VisionTransformer(**options)


@pytest.mark.parametrize('name', WITH_MANIFEST)
def test_release__its_names_fit_its_network(name):
    entry, weights = RELEASES[name], read_manifest(name)
    found, _ = convert_weights(weights, name, entry.prefix)
    assert found.format.name == entry.format
    network = network_on_meta(**entry.network)
    report = fill_network(network, {'model': weights}, name, prefix=entry.prefix)
    assert (report.missing, report.unexpected, report.resized) == ([], [], [])
    assert report.matched == list(network.state_dict())
    assert entry.grid == network.grid


@pytest.mark.parametrize('name', WITH_MANIFEST)
def test_release__a_network_of_another_size_is_refused(name):
    entry, weights = RELEASES[name], read_manifest(name)
    network = network_on_meta(**{**entry.network, 'arch': 's'})
    with pytest.raises(ValueError, match=r'width \d+ in the file and 384 here'):
        fill_network(network, {'model': weights}, name, prefix=entry.prefix)


@pytest.mark.parametrize('version', [4, 5])
@pytest.mark.parametrize('kind', HUGGING_FACE)
def test_hugging_face__names_of_files_since_4_and_of_the_classes_of_5(kind, version):
    expected, options, dropped = HUGGING_FACE[kind]
    weights = read_manifest(f'hf{version}_{kind}_base')
    found, converted = convert_weights(weights, kind)
    assert found.format.name == expected
    report = fill_network(network_on_meta(position='learned', **options), weights, kind)
    assert (report.missing, report.unexpected) == ([], [])
    decoder = [name for name in report.dropped if name.startswith('decoder.')]
    assert report.dropped == (decoder if dropped is None else dropped)
    assert len(decoder) == (5 + 3 + 8 * 12 if kind == 'mae' else 0)


@pytest.mark.parametrize(
    ('kind', 'old', 'new'),
    [
        ('mae', 'decoder.decoder_layers.', 'decoder.decoder_encoder.layer.'),  # what transformers 5 writes
        ('vit', 'encoder.', 'vit.encoder.'),  # a part of a classifier, with the others' prefix
    ],
)
def test_hugging_face__further_names(kind, old, new):
    weights = {name.replace(old, new): tensor for name, tensor in read_manifest(f'hf4_{kind}_base').items()}
    if kind == 'vit':
        weights = {
            name if name.startswith(('vit.', 'pooler')) else f'vit.{name}': value for name, value in weights.items()
        }
    report = fill_network(network_on_meta(position='learned'), weights, kind)
    assert (report.missing, report.unexpected) == ([], [])


def test_hugging_face__whole_clip_of_old():
    """Files of the whole model also hold the text tower and the buffer of position ids."""
    weights = read_manifest('hf4_clip_base')
    weights['vision_model.embeddings.position_ids'] = torch.empty(1, 197, device='meta')
    weights['text_model.encoder.layers.0.self_attn.q_proj.weight'] = torch.empty(512, 512, device='meta')
    weights['logit_scale'] = torch.empty((), device='meta')
    options = dict(pre_norm=True, position='learned', projection=512)
    report = fill_network(network_on_meta(**options), weights, 'clip')
    assert (report.missing, report.unexpected) == ([], []) and len(report.dropped) == 3


def test_releases__table():
    for name, entry in RELEASES.items():
        assert entry.name == name and (entry.format is None or entry.format in FORMATS)
        assert (entry.format is None) == (entry.network is None)
        assert all(len(values) == 3 for values in entry.statistics) and '://' not in entry.file + entry.publisher
        if entry.network is not None:
            assert network_on_meta(**entry.network).grid == entry.grid
    papers = {paper for entry in RELEASES.values() for paper in entry.papers}
    assert len(papers) == 5
    hugging_face = [f'hf{version}_{kind}_base' for version in (4, 5) for kind in HUGGING_FACE]
    assert {path.stem for path in MANIFESTS.glob('*.txt')} == {*WITH_MANIFEST, *hugging_face}
    assert len(WITH_MANIFEST) >= 20


@pytest.mark.parametrize(
    ('name', 'model'),
    [
        ('dino_base', 'vit_base_patch16_224.dino'),
        ('mae_base', 'vit_base_patch16_224.mae'),
        ('deit_base_distilled', 'deit_base_distilled_patch16_224.fb_in1k'),
        ('beit_base', 'beit_base_patch16_224.in22k_ft_in22k_in1k'),
        ('beitv2_base', 'beitv2_base_patch16_224.in1k_ft_in22k'),
        ('clip_base', 'vit_base_patch16_clip_quickgelu_224.openai'),
        ('clip_large', 'vit_large_patch14_clip_quickgelu_224.openai'),
        ('dinov2_base_reg', 'vit_base_patch14_reg4_dinov2.lvd142m'),
    ],
)
def test_releases__statistics_and_grid_as_timm_has_them(name, model):
    timm = pytest.importorskip('timm')
    entry, wanted = RELEASES[name], timm.models.get_pretrained_cfg(model)
    assert entry.pixel_mean == pytest.approx([255 * value for value in wanted.mean], rel=1e-6)
    assert entry.pixel_std == pytest.approx([255 * value for value in wanted.std], rel=1e-6)
    assert entry.network['img_size'] == wanted.input_size[1]
