"""`mkd inspect` describes a file without running it; `mkd doctor` describes the environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mkd_cli.doctor import describe_environment
from mkd_plugin import __version__
from mkd_plugin.interop.inspect import describe_checkpoint, guess_format, render

ROOT = Path(__file__).resolve().parents[3]
TIMM = ['blocks.0.attn.qkv.weight', 'patch_embed.proj.weight']
CLIP = ['class_embedding', 'conv1.weight', 'transformer.resblocks.0.attn.in_proj_weight']
HF = ['embeddings.patch_embeddings.projection.weight', 'encoder.layer.0.layernorm_before.weight']


@pytest.mark.parametrize(
    'keys, wanted',
    [
        (['backbone.layers.0.ln1.weight', 'objectives.feature.heads.0.embed.weight'], 'mkd_plugin pre-training'),
        (['backbone.layers.0.ln1.weight', 'neck.mask_token'], 'mmpretrain algorithm (backbone.…)'),
        (['layers.0.ln1.weight', 'patch_embed.projection.weight'], 'mkd_plugin or mmpretrain VisionTransformer'),
        (
            [*TIMM, 'decoder_embed.weight', 'decoder_pred.weight', 'decoder_blocks.0.attn.qkv.weight'],
            'MAE reference, encoder and decoder',
        ),
        (TIMM, 'timm, DeiT, DINO, MoCo v3 or MAE encoder'),
        ([*TIMM, 'blocks.0.attn.q_bias'], 'BEiT or BEiT v2'),
        (
            [f'visual.{name}' for name in CLIP],
            "CLIP of OpenAI or OpenCLIP, visual tower, under 'visual.'",
        ),
        (
            [f'vit.{name}' for name in HF],
            "Hugging Face ViT or DeiT, under 'vit.'",
        ),
        (
            [f'{place}{name}' for place in ('student.module.backbone.', 'teacher.backbone.') for name in TIMM],
            "timm, DeiT, DINO, MoCo v3 or MAE encoder, under 'student.module.backbone.'; "
            "timm, DeiT, DINO, MoCo v3 or MAE encoder, under 'teacher.backbone.'",
        ),
        (['backbone.conv1.weight', 'decode_head.conv_seg.weight'], 'mmseg or mmdet model'),
        ([f'_orig_mod.{name}' for name in TIMM], 'timm, DeiT, DINO, MoCo v3 or MAE encoder'),
        (['layer1.0.conv1.weight'], 'ResNet'),
        (['weight', 'bias'], "unknown; names begin with ['bias', 'weight']"),
    ],
)
def test_guess_format__by_the_names_of_the_weights(keys, wanted):
    assert guess_format(keys) == wanted


def test_guess_format__of_our_own_and_timms_networks(build_distiller):
    timm = pytest.importorskip('timm')
    assert guess_format(build_distiller().state_dict()) == 'mkd_plugin pre-training'
    vit = timm.create_model('vit_tiny_patch16_224', depth=1)
    assert guess_format(vit.state_dict()) == 'timm, DeiT, DINO, MoCo v3 or MAE encoder'


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    weights = {'backbone.layers.0.ln1.weight': torch.zeros(4, 2), 'objectives.x': torch.zeros(3, dtype=torch.bfloat16)}
    meta = dict(
        epoch=3, iter=90, time='20261121', cfg='a = 1\nb = 2\x1b[31m', mkd_plugin=dict(version='0.1.0', stage=2)
    )
    torch.save(dict(state_dict=weights, meta=meta, optimizer={}), tmp_path / 'epoch_3.pth')
    return tmp_path / 'epoch_3.pth'


def test_describe_checkpoint__tells_everything_once(checkpoint):
    assert describe_checkpoint(checkpoint) == {
        'file': str(checkpoint),
        'bytes': checkpoint.stat().st_size,
        'format': 'mkd_plugin pre-training',
        'tensors': 2,
        'parameters': 11,
        'dtypes': {'float32': 1, 'bfloat16': 1},
        'entries': ['state_dict', 'meta', 'optimizer'],
        'epoch': 3,
        'iter': 90,
        'time': '20261121',
        'seed': None,
        'stage': 2,
        'provenance': {'version': '0.1.0'},
        'config': 'a = 1\nb = 2\x1b[31m',
    }


def test_describe_checkpoint__bare_state_dict(tmp_path):
    torch.save({'blocks.0.attn.qkv.weight': torch.zeros(2), 'patch_embed.proj.weight': torch.zeros(2)}, tmp_path / 'x')
    described = describe_checkpoint(tmp_path / 'x')
    assert described['format'] == 'timm, DeiT, DINO, MoCo v3 or MAE encoder' and described['entries'] == []
    assert described['provenance'] == {} and described['config'] is None
    assert 'none: not written by mkd_plugin' in render(described)


def test_render__shows_the_config_on_request_and_steers_no_terminal(checkpoint):
    described = describe_checkpoint(checkpoint)
    assert 'a = 1' not in render(described) and 'config      2 lines' in render(described)
    text = render(described, config=True)
    assert 'a = 1\nb = 2\\x1b[31m' in text and '\x1b' not in text


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def inspect(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / 'tools/inspect_checkpoint.py', *arguments]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True)


def test_inspect_checkpoint__runs_nothing_and_says_why(tmp_path):
    torch.save(dict(state_dict={'w': torch.zeros(1)}, meta=Hostile(tmp_path / 'ran')), tmp_path / 'hostile.pth')
    done = inspect(tmp_path / 'hostile.pth')
    assert done.returncode == 2 and 'was refused' in done.stderr and 'Traceback' not in done.stderr
    assert not (tmp_path / 'ran').exists()
    with pytest.raises(ValueError, match='cannot be read'):
        (tmp_path / 'cut.pth').write_bytes((tmp_path / 'hostile.pth').read_bytes()[:200])
        describe_checkpoint(tmp_path / 'cut.pth')
    with pytest.raises(FileNotFoundError, match='There is no checkpoint'):
        describe_checkpoint(tmp_path / 'none.pth')


def test_inspect_checkpoint__json(checkpoint):
    done = inspect(checkpoint, '--json')
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)['stage'] == 2


def test_describe_environment__names_hosts_threads_and_precision():
    found = describe_environment()
    assert found['mkd_plugin'] == __version__
    assert found['mmengine'].startswith('0.10.') and 'mmengine' in found['mmengine'].split('(')[1]
    assert found['CPU threads of torch'] == str(torch.get_num_threads())
    assert found['GPU bf16'] == 'no GPU' or torch.cuda.is_available()
    assert {'torch', 'timm', 'mmpretrain', 'mmdet', 'mmseg'} <= set(found)
