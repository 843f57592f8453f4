"""Folders that Hugging Face's and timm's own loaders open: weights, sizes and the preparation of images."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from helpers.networks import scatter_weights
from PIL import Image

from mkd_plugin.interop.convert import convert_checkpoint
from mkd_plugin.interop.open_model import open_models
from mkd_plugin.interop.pixels import to_rgb_batch
from mkd_plugin.interop.student import load_student
from mkd_plugin.models.vit import VisionTransformer

ARCH = dict(width=32, depth=2, num_heads=2, mlp_ratio=4.0)
MEAN, STD = [120.0, 110.0, 100.0], [60.0, 70.0, 80.0]
NETWORKS = dict(
    plain=dict(position='learned'),
    beit=dict(position='none', relative_position='per_block', layer_scale=0.1),
)


@pytest.fixture(params=NETWORKS)
def checkpoint(request, tmp_path):
    network = scatter_weights(VisionTransformer(arch=ARCH, img_size=32, patch_size=8, **NETWORKS[request.param]))
    about = dict(version='0', backbone=network.options, pixel_mean=MEAN, pixel_std=STD, teachers=[])
    state = {f'backbone.{name}': value for name, value in network.state_dict().items()}
    torch.save(dict(meta=dict(epoch=1, mkd_plugin=about), state_dict=state), tmp_path / 'run.pth')
    return tmp_path / 'run.pth'


@pytest.fixture
def photo():
    return Image.fromarray(np.random.default_rng(0).integers(256, size=(50, 71, 3), dtype=np.uint8))


def assert_close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_hf__auto_classes_give_our_features_of_a_photograph(tmp_path, checkpoint, photo):
    transformers = pytest.importorskip('transformers')
    convert_checkpoint(checkpoint, tmp_path / 'hf', 'hf')
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / 'hf', use_fast=False)
    model = transformers.AutoModel.from_pretrained(tmp_path / 'hf').eval()
    with torch.no_grad():
        found = model(**processor(images=photo, return_tensors='pt')).last_hidden_state
    assert_close(found, load_student(checkpoint).features(photo, tap='output', pool='none'))


def test_timm__local_dir_gives_our_features_of_a_photograph(tmp_path, checkpoint, photo):
    timm = pytest.importorskip('timm')
    convert_checkpoint(checkpoint, tmp_path / 'timm', 'timm')
    model = timm.create_model(f'local-dir:{tmp_path / "timm"}', pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    assert model.pretrained_cfg['mean'] == pytest.approx([value / 255 for value in MEAN])
    with torch.no_grad():
        found = model.forward_features(transform(photo)[None])
    assert_close(found, load_student(checkpoint).features(photo, tap='output', pool='none'))


def test_folder__model_card_and_modes(tmp_path, checkpoint):
    before = os.umask(0o027)
    try:
        convert_checkpoint(checkpoint, tmp_path / 'hf', 'hf')
    finally:
        os.umask(before)
    card = (tmp_path / 'hf' / 'README.md').read_text()
    assert 'Converted by mkd_plugin' in card
    assert '32 × 32 px' in card
    assert '"sha256"' in card
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (tmp_path / 'hf').iterdir()}
    assert set(modes) == {'README.md', 'config.json', 'model.safetensors', 'preprocessor_config.json'}
    assert set(modes.values()) == {'0o640'}


@pytest.mark.parametrize('target', ['hf', 'timm'])
def test_folder__is_read_again(tmp_path, checkpoint, photo, target):
    convert_checkpoint(checkpoint, tmp_path / 'folder', target)
    (model,) = open_models([str(tmp_path / 'folder')], known={}, device='cpu')
    wanted = load_student(checkpoint)
    pixels = wanted.normalise(to_rgb_batch(photo, (32, 32)))
    assert [list(map(float, values)) for values in model.pixels] == [MEAN, STD]
    with torch.no_grad():
        found = model.network(pixels, taps=('output',)).tokens('output')
    assert_close(found, wanted.features(photo, tap='output', pool='none'))
