"""docs/teachers.md comes from the table of releases, and every config in it builds."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import timm
import torch
from helpers.checkpoint_networks import scattered
from helpers.foundation_files import BY_TIMM, SMALL, published
from helpers.networks_modern import NETWORKS

from mkd_plugin.checkpoint.releases import RELEASES
from mkd_plugin.models.protocols import StudentContext
from mkd_plugin.models.students import MaskTokenViT
from mkd_plugin.models.vit import VisionTransformer
from mkd_plugin.registry import check_options, find

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = runpy.run_path(str(ROOT / 'tools' / 'docs' / 'teachers.py'))
VITS = [name for name, entry in RELEASES.items() if entry.network is not None]


def test_page__is_what_the_script_writes():
    assert (ROOT / 'docs' / 'teachers.md').read_text() == SCRIPT['page'](), 'run: python tools/docs/teachers.py'


@pytest.mark.parametrize('name', RELEASES)
def test_config__as_written_is_python_and_its_options_exist(name):
    config = SCRIPT['config_of'](RELEASES[name])
    assert eval(SCRIPT['written'](config), {'dict': dict}) == config
    options = dict(config)
    check_options(find(options.pop('type')), options, ['student'])


@pytest.mark.parametrize('name', VITS)
def test_config__builds_the_released_network(name):
    entry = RELEASES[name]
    config = {**SCRIPT['config_of'](entry), 'checkpoint': None, 'prefix': None, 'seed': 0}
    cls = find(config.pop('type'))
    patch, side = entry.network['patch_size'], entry.network['img_size']
    with torch.device('meta'):
        wanted = VisionTransformer(**entry.network).state_dict()
    student = MaskTokenViT(arch=dict(width=8, depth=1, num_heads=1), img_size=side // patch * 4, patch_size=4)
    config['arch'] = 'ti'  # a full-size network takes seconds; its names and options are what is compared
    network = cls(student=StudentContext(student, entry.pixel_mean, entry.pixel_std), **config).network
    built = dict(network.named_buffers())
    depth = network.arch.depth
    kept = {key for key in wanted if not key.startswith('layers.') or int(key.split('.')[1]) < depth}
    assert kept == set(built) | ({'proj.weight'} & kept)
    assert network.grid == entry.grid
    assert network.patch_size == patch


def test_page__options_of_modern_networks_are_those_compared_with_timm():
    """As `tests/unit/models/test_modern_parts.py` compares them."""
    names = dict(
        DINOV3='dinov3', DINOV3_PLUS='dinov3_plus', SIGLIP='siglip2', EVA02='eva02_base', EVA02_CLIP='eva02_clip'
    )
    found: dict = {}
    exec(re.search('```python\n(.*?)```', SCRIPT['MODERN'], re.DOTALL)[1], found)
    assert {name: found[name] for name in names} == {name: NETWORKS[other][3] for name, other in names.items()}
    for config in (found['teacher'], found['student']):
        options = dict(config)
        check_options(find(options.pop('type')), options, ['student'])
    with torch.device('meta'):
        for options in (dict(arch='b', **found['DINOV3']), dict(arch=found['eva_b'], patch_size=14, **found['EVA02'])):
            assert VisionTransformer(**options).layers[0].ffn.layers[1].in_features in (3072, 2048)


FILES = {
    'DINOv3': 'vit_base_patch16_dinov3',
    'SigLIP 2': 'vit_base_patch16_siglip_224',
    'Perception Encoder': 'PE core',
    'MetaCLIP': 'vit_base_patch16_clip_224',
}


@pytest.mark.parametrize('name', SCRIPT['LINES'])
def test_foundation_models__their_lines_load_files(tmp_path, name):
    """The line of the page with a small network of the same model, from a file in the authors' layout or timm's."""
    if (kind := FILES.get(name, name)) in BY_TIMM:
        *_, sizes, network, weights = published(kind)
    else:
        sizes = SMALL
        network = scattered(timm.create_model(kind, num_classes=0, **sizes))
        weights = network.state_dict()
    torch.save(weights, tmp_path / 'file.pth')
    config = eval(SCRIPT['LINES'][name], {'dict': dict})
    options = {**config, 'checkpoint': str(tmp_path / 'file.pth'), 'options': {**config.get('options', {}), **sizes}}
    student = MaskTokenViT(arch=dict(width=8, depth=1, num_heads=1), img_size=224, patch_size=16)
    cls = find(options.pop('type'))
    teacher = cls(student=StudentContext(student, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)), **options)
    assert torch.equal(teacher.network.blocks[-1].norm2.weight, network.blocks[-1].norm2.weight)
    assert teacher.tap_spec('block:-1').channels == sizes['embed_dim']


def test_page__counts_the_parameters_of_dinov3_7b():
    with torch.device('meta'):
        network = timm.create_model('vit_7b_patch16_dinov3', num_classes=0)
    blocks = [sum(weight.numel() for weight in block.parameters()) for block in network.blocks]
    whole = sum(weight.numel() for weight in network.parameters())
    text = (ROOT / 'docs/teachers.md').read_text()
    assert set(blocks) == {blocks[0]} and f'{len(blocks)} blocks of\n{blocks[0]:,}' in text
    assert (
        f'{whole:,} parameters: {4 * whole / 1e9:.1f} GB' in text and f'all of them but {whole - sum(blocks):,}' in text
    )
    assert f'float32 | {4 * sum(blocks) / 8 / 1e9:.2f} GB' in text
