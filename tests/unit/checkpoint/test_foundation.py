"""Files of foundation models are recognised by their names, and converted to timm's."""

from __future__ import annotations

import zipfile
from io import BytesIO

import numpy as np
import pytest
import timm
import torch
from helpers.checkpoint_networks import scattered
from helpers.foundation_files import BY_TIMM, SMALL, big_vision_layout, published

from mkd_plugin.checkpoint.foundation import identify
from mkd_plugin.checkpoint.load import convert_weights, load_backbone
from mkd_plugin.checkpoint.read import CheckpointError, read_checkpoint
from mkd_plugin.interop.inspect import describe_checkpoint, guess_format
from mkd_plugin.models.vit import VisionTransformer


def on_meta(network, config):
    with torch.device('meta'):
        return network(config).state_dict()


def test_identify__published_sizes_of_hugging_face():
    transformers = pytest.importorskip('transformers')
    large = dict(hidden_size=1152, num_attention_heads=16, num_hidden_layers=27, intermediate_size=4304)
    dinov3 = dict(hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_register_tokens=4)
    found = {
        'DINOv3-S+': on_meta(
            transformers.DINOv3ViTModel, transformers.DINOv3ViTConfig(**dinov3, use_gated_mlp=True, hidden_act='silu')
        ),
        'SigLIP-B': on_meta(transformers.SiglipModel, transformers.SiglipConfig()),
        'SigLIP-SO400M': on_meta(
            transformers.SiglipVisionModel, transformers.SiglipVisionConfig(**large, image_size=512, patch_size=16)
        ),
        'NaFlex': on_meta(transformers.Siglip2VisionModel, transformers.Siglip2VisionConfig()),
    }
    told = {name: (identify(weights).sentence(), identify(weights).config('f')) for name, weights in found.items()}
    assert told == {
        'DINOv3-S+': (
            "DINOv3 in Hugging Face's layout: width 384, 12 blocks, patches of 16 pixels, with a cls token and 4 registers",
            "dict(type='TimmTeacher', model='vit_small_plus_patch16_dinov3_qkvb', checkpoint='f')",
        ),
        'SigLIP-B': (
            "SigLIP or SigLIP 2 in Hugging Face's layout: width 768, 12 blocks, patches of 16 pixels, positions for 14 × 14 "
            'patches, without a cls token',
            "dict(type='TimmTeacher', model='vit_base_patch16_siglip_224', options=dict(act_layer='gelu_tanh'), "
            "checkpoint='f')",
        ),
        'SigLIP-SO400M': (
            "SigLIP or SigLIP 2 in Hugging Face's layout: width 1152, 27 blocks, patches of 16 pixels, positions for 32 × 32 "
            'patches, without a cls token',
            "dict(type='TimmTeacher', model='vit_so400m_patch16_siglip_512', checkpoint='f')",
        ),
        'NaFlex': (
            "SigLIP 2 NaFlex in Hugging Face's layout: width 768, 12 blocks, patches of 16 pixels, positions for 16 × 16 "
            'patches, without a cls token',
            "dict(type='TimmTeacher', model='naflexvit_base_patch16_siglip', checkpoint='f')",
        ),
    }


def test_identify__open_clips_siglip():
    open_clip = pytest.importorskip('open_clip')
    config = open_clip.get_model_config('ViT-B-16-SigLIP')
    with torch.device('meta'):
        weights = open_clip.CustomTextCLIP(
            config['embed_dim'], config['vision_cfg'] | dict(timm_model_pretrained=False), config['text_cfg']
        ).state_dict()
    found = identify(weights)
    assert found.sentence().startswith(
        "SigLIP or SigLIP 2 in OpenCLIP's layout: width 768, 12 blocks, patches of 16 pixels, "
    )
    assert found.config('f') == "dict(type='TimmTeacher', model='vit_base_patch16_siglip_224', checkpoint='f')"


@pytest.mark.parametrize(
    ('model', 'family'),
    [
        ('vit_base_patch16_dinov3', 'DINOv3'),
        ('vit_small_patch16_dinov3_qkvb', 'DINOv3'),
        ('vit_large_patch16_siglip_384', 'SigLIP or SigLIP 2'),
        ('eva02_large_patch14_448', 'EVA-02'),
        ('eva02_base_patch16_clip_224', 'EVA-02'),
        ('vit_pe_core_gigantic_patch14_448', 'Perception Encoder'),
        ('vit_pe_spatial_large_patch14_448', 'Perception Encoder'),
        ('vit_pe_lang_large_patch14_448', 'Perception Encoder'),
        ('vit_huge_patch16_radio_v3', 'C-RADIO'),
        ('aimv2_1b_patch14_336', 'AIMv2'),
    ],
)
def test_identify__timms_own_file_names_its_model(model, family):
    with torch.device('meta'):
        weights = timm.create_model(model, num_classes=0).state_dict()
    found = identify({f'module.{name}': tensor for name, tensor in weights.items()})
    assert (found.family, found.layout.layout) == (family, "timm's")
    assert found.config('f').startswith(f"dict(type='TimmTeacher', model='{model}', ")


@pytest.mark.parametrize(
    'model',
    [
        'vit_base_patch16_224',
        'vit_base_patch14_reg4_dinov2',
        'beitv2_base_patch16_224',
        'deit3_base_patch16_224',
        'vit_base_patch16_clip_224',
        'vit_medium_patch16_rope_reg1_gap_256',
        'samvit_base_patch16',
        'hiera_tiny_224',
        'swin_tiny_patch4_window7_224',
        'resnet18',
    ],
)
def test_identify__other_models_are_none_of_these(model):
    with torch.device('meta'):
        assert identify(timm.create_model(model, num_classes=0).state_dict()) is None


@pytest.mark.parametrize('kind', [kind for kind in BY_TIMM if kind != 'TIPSv2'])
def test_to_timm__gives_timms_tensors_without_a_model(kind):
    *_, network, weights = published(kind)
    found, wanted = identify(weights).to_timm(), network.state_dict()
    assert wanted.keys() <= found.keys()
    for name, tensor in wanted.items():
        if not (kind == 'C-RADIO' and name == 'patch_embed.proj.bias'):
            assert torch.equal(found[name], tensor), name


def test_big_vision__is_read_and_converted_without_a_model(tmp_path):
    network = scattered(timm.create_model('vit_base_patch16_siglip_224', num_classes=0, **SMALL))
    np.savez(tmp_path / 'file.npz', **big_vision_layout(network.state_dict(), 2, stacked=True))
    weights = read_checkpoint(tmp_path / 'file.npz')['state_dict']
    found, wanted = identify(weights).to_timm(), network.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    told = describe_checkpoint(tmp_path / 'file.npz')
    assert told['format'].startswith(
        "SigLIP or SigLIP 2 in big_vision's layout: width 32, 2 blocks, patches of 16 pixels"
    )
    assert told['teacher'].startswith("dict(type='TimmTeacher', model='vit_*_siglip_*'")  # timm has none of this width


def test_read_arrays__numbers_of_every_kind_and_nothing_else(tmp_path):
    kinds = dict(f=np.float32(3.5) * np.ones((2, 3)), b=np.full((2, 2), 0x3FC0, '<u2').view('V2'),
                 t=np.asfortranarray(np.arange(6.0).reshape(2, 3)), n=np.int64(4))  # fmt: skip
    np.savez_compressed(tmp_path / 'file.npz', **kinds)
    found = read_checkpoint(tmp_path / 'file.npz')['state_dict']
    assert torch.equal(found['b'], torch.full((2, 2), 1.5, dtype=torch.bfloat16))
    assert np.array_equal(found['t'].numpy(), kinds['t']) and found['n'].item() == 4
    np.savez(tmp_path / 'pickled.npz', weights=np.array([{'a': 1}], dtype=object))
    with pytest.raises(CheckpointError, match='cannot be read as a checkpoint'):
        read_checkpoint(tmp_path / 'pickled.npz')


def test_read_arrays__a_header_that_claims_more_than_the_file_has(tmp_path):
    array = BytesIO()
    np.save(array, np.zeros((4, 4), np.float32))
    claiming = array.getvalue().replace(b'(4, 4), }             ', b'(4, 400000000000), }  ')
    assert claiming != array.getvalue()
    with zipfile.ZipFile(tmp_path / 'file.npz', 'w') as archive:
        archive.writestr('a.npy', claiming)
    with pytest.raises(CheckpointError, match='cannot reshape array of size 16 into shape'):
        read_checkpoint(tmp_path / 'file.npz')


def test_sizes__a_file_whose_tensors_have_other_dimensions():
    weights = {
        'storage_tokens': torch.zeros(2),
        'blocks.0.attn.qkv.weight': torch.zeros(2),
        'blocks.0.ls1.gamma': torch.zeros(2),
    }
    with pytest.raises(CheckpointError, match="DINOv3 in its authors' layout"):
        identify(weights).sentence()


@pytest.mark.parametrize('kind', ['PE core', 'C-RADIO', 'AIMv2'])
def test_load_backbone__a_family_that_our_vit_cannot_compute(tmp_path, kind):
    *_, weights = published(kind)
    torch.save(weights, tmp_path / 'file.pth')
    network = VisionTransformer(arch=dict(width=32, depth=2, num_heads=2), img_size=224, patch_size=16)
    with pytest.raises(
        CheckpointError, match=r"holds .* layout: width 32, .* cannot compute it. Use dict\(type='TimmTeacher'"
    ):
        load_backbone(network, tmp_path / 'file.pth')


def test_load_backbone__tipsv2_is_a_dinov2(tmp_path):
    *_, theirs, weights = published('TIPSv2')
    torch.save(weights, tmp_path / 'file.pth')
    network = VisionTransformer(
        arch=dict(width=32, depth=2, num_heads=2), img_size=448, patch_size=14, position='learned', layer_scale=1.0,
        num_registers=1,
    ).eval()  # fmt: skip
    load_backbone(network, tmp_path / 'file.pth')
    images = torch.randn(1, 3, 448, 448)
    with torch.no_grad():
        torch.testing.assert_close(network(images).tokens('output'), theirs.forward_features(images))


@pytest.mark.parametrize(
    ('model', 'title'),
    [
        ('swin_tiny_patch4_window7_224', 'Swin Transformer'),
        ('convnext_tiny', 'ConvNeXt'),
        ('resnet18', 'ResNet'),
    ],
)
def test_find_network__says_what_an_unknown_file_looks_like(model, title):
    with torch.device('meta'):
        weights = timm.create_model(model, num_classes=0).state_dict()
    with pytest.raises(CheckpointError, match=f'no network of a known format, but one that looks like: {title}. Known'):
        convert_weights(weights, 'file')
    assert guess_format(weights) == title
