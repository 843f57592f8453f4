"""Files of foundation models, as their authors and libraries publish them, in timm's models: equal to the libraries."""

from __future__ import annotations

import re

import numpy as np
import pytest
import timm
import torch
from helpers.checkpoint_networks import scattered
from helpers.foundation_files import BY_TIMM, SMALL, big_vision_layout, published

from mkd_plugin.checkpoint import load_backbone
from mkd_plugin.models.protocols import StudentContext
from mkd_plugin.models.students import MaskTokenViT
from mkd_plugin.models.teachers import TimmTeacher, ViTTeacher
from mkd_plugin.models.vit import VisionTransformer

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
TANH = dict(act_layer='gelu_tanh')


@pytest.fixture(scope='module')
def student():
    network = MaskTokenViT(arch=dict(width=8, depth=1, num_heads=1), img_size=224, patch_size=16)
    return StudentContext(network, MEAN, STD)


@pytest.fixture(scope='module')
def hugging_face():
    return pytest.importorskip('transformers')


def largest_error(found, wanted):
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def images_of(height=224, width=224):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


DINOV3 = dict(position='none', rope='dinov3', layer_scale=1.0, num_registers=4, norm_eps=1e-5)


def our_vit(path, size, *, width=32, heads=2, mlp=128, patch_size=16, **options):
    """Load our own ViT from a file."""
    arch = dict(width=width, depth=2, num_heads=heads, mlp_ratio=mlp / width)
    network = VisionTransformer(arch=arch, img_size=size, patch_size=patch_size, **options).eval()
    report = load_backbone(network, path)
    assert re.match('(DINOv3|SigLIP|EVA-02).* in .* layout|DINOv3 reference', report.format)
    assert not report.missing and set(report.unexpected) <= {'ln2.weight', 'ln2.bias'}  # a norm after mean pooling
    return network.double()


def dinov3_of(hugging_face, **options):
    config = hugging_face.DINOv3ViTConfig(
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_register_tokens=4,
        **options,
    )
    return scattered(hugging_face.DINOv3ViTModel(config))


def authors_dinov3(theirs):
    """Name the tensors of transformers' DINOv3 as in the authors' files, with biases of keys that a mask hides."""
    old, weights = theirs.state_dict(), {}
    names = {
        'cls_token': 'embeddings.cls_token', 'storage_tokens': 'embeddings.register_tokens', 'norm.weight': 'norm.weight',
        'norm.bias': 'norm.bias', 'patch_embed.proj.weight': 'embeddings.patch_embeddings.weight',
        'patch_embed.proj.bias': 'embeddings.patch_embeddings.bias',
    }  # fmt: skip
    gated = 'layer.0.mlp.gate_proj.weight' in old
    mlp = dict(w1='gate_proj', w2='up_proj', w3='down_proj') if gated else dict(fc1='up_proj', fc2='down_proj')
    for index in range(2):
        start, layer = f'blocks.{index}.', f'layer.{index}.'
        for number in '12':
            names[f'{start}ls{number}.gamma'] = f'{layer}layer_scale{number}.lambda1'
        for kind in ('weight', 'bias'):
            for number in '12':
                names[f'{start}norm{number}.{kind}'] = f'{layer}norm{number}.{kind}'
            names[f'{start}attn.proj.{kind}'] = f'{layer}attention.o_proj.{kind}'
            names |= {f'{start}mlp.{ours}.{kind}': f'{layer}mlp.{part}.{kind}' for ours, part in mlp.items()}
        three = [old[f'{layer}attention.{part}_proj.weight'] for part in 'qkv']
        biases = [old[f'{layer}attention.q_proj.bias'], torch.ones(32), old[f'{layer}attention.v_proj.bias']]
        weights[f'{start}attn.qkv.weight'], weights[f'{start}attn.qkv.bias'] = torch.cat(three), torch.cat(biases)
        weights[f'{start}attn.qkv.bias_mask'] = torch.cat([torch.ones(32), torch.zeros(32), torch.ones(32)])
    weights |= {name: old[part] for name, part in names.items()}
    extra = {
        'mask_token': torch.zeros(1, 32),
        'rope_embed.periods': torch.zeros(4),
        'local_cls_norm.weight': torch.ones(32),
    }
    return weights | extra


@pytest.mark.parametrize('layout', ['folder', 'newer names', 'authors'])
@pytest.mark.parametrize('gated', [False, True])
def test_dinov3__equals_transformers(tmp_path, student, hugging_face, layout, gated):
    theirs = dinov3_of(hugging_face, use_gated_mlp=gated, hidden_act='silu' if gated else 'gelu')
    path = tmp_path / 'file.pth'
    if layout == 'folder':
        theirs.save_pretrained(tmp_path)
        path = tmp_path
    elif layout == 'newer names':
        weights = {name.replace('layer.', 'model.layer.', 1): tensor for name, tensor in theirs.state_dict().items()}
        torch.save(weights, path)
    else:
        torch.save({'model': authors_dinov3(theirs)}, path)
    model = 'vit_small_plus_patch16_dinov3_qkvb' if gated else 'vit_small_patch16_dinov3_qkvb'
    teacher = TimmTeacher(student=student, model=model, options={**SMALL, 'mlp_ratio': 4.0}, checkpoint=str(path))
    theirs, teacher = theirs.double(), teacher.double()
    with torch.no_grad():
        for size in [(224, 224), (160, 256)]:
            wanted = theirs(images_of(*size)).last_hidden_state
            assert largest_error(teacher.network.forward_features(images_of(*size)), wanted) < 1e-6
            ours = our_vit(path, size, **DINOV3, activation='swiglu' if gated else 'gelu')
            assert largest_error(ours(images_of(*size)).tokens('output'), wanted) < 1e-6
    output = teacher(images_of(), None, ('output',)).tokens('output')
    assert largest_error(output[:, 0], theirs(teacher.view(images_of())).pooler_output) < 1e-6


def test_dinov3__biases_that_the_model_lacks(tmp_path, student, hugging_face):
    theirs = dinov3_of(hugging_face)
    torch.save(theirs.state_dict(), tmp_path / 'file.pth')
    options = dict(student=student, model='vit_small_patch16_dinov3', options=SMALL)
    with pytest.raises(
        ValueError, match=r'does not fit .*: it holds DINOv3 in Hugging .* queries and values have biases'
    ):
        TimmTeacher(**options, checkpoint=str(tmp_path / 'file.pth'))
    for name, parameter in theirs.named_parameters():
        if name.endswith(('q_proj.bias', 'v_proj.bias')):
            torch.nn.init.zeros_(parameter)  # as in the published files
    torch.save(theirs.state_dict(), tmp_path / 'file.pth')
    teacher, theirs = TimmTeacher(**options, checkpoint=str(tmp_path / 'file.pth')).double(), theirs.double()
    with torch.no_grad():
        wanted = theirs(images_of()).last_hidden_state
        assert largest_error(teacher.network.forward_features(images_of()), wanted) < 1e-6


SIGLIP = dict(hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)


@pytest.mark.parametrize('whole', [False, True], ids=['tower', 'with text'])
def test_siglip__equals_transformers(tmp_path, student, hugging_face, whole):
    vision = hugging_face.SiglipVisionConfig(**SIGLIP, image_size=224, patch_size=16)
    text = hugging_face.SiglipTextConfig(**SIGLIP, vocab_size=8, bos_token_id=1, eos_token_id=1, pad_token_id=1)
    if whole:
        model = hugging_face.SiglipModel(hugging_face.SiglipConfig(text.to_dict(), vision.to_dict()))
    else:
        model = hugging_face.SiglipVisionModel(vision)
    scattered(model).save_pretrained(tmp_path)
    teacher = TimmTeacher(
        student=student, model='vit_base_patch16_siglip_224', options=SMALL | TANH, checkpoint=str(tmp_path)
    )
    model, teacher = model.double(), teacher.double()
    with torch.no_grad():
        wanted = model.vision_model(images_of())
        tokens = teacher.network.forward_features(images_of())
        assert largest_error(tokens, wanted.last_hidden_state) < 1e-6
        assert largest_error(teacher.network.forward_head(tokens), wanted.pooler_output) < 1e-6
        ours = our_vit(tmp_path, 224, position='learned', cls_token=False, activation='gelu_tanh')
        assert largest_error(ours(images_of()).tokens('output'), wanted.last_hidden_state) < 1e-6


@pytest.mark.parametrize('size', [(256, 256), (160, 224)])
def test_siglip2_naflex__equals_transformers(tmp_path, student, hugging_face, size):
    theirs = scattered(hugging_face.Siglip2VisionModel(hugging_face.Siglip2VisionConfig(**SIGLIP, patch_size=16)))
    theirs.save_pretrained(tmp_path)
    teacher = TimmTeacher(
        student=student, model='naflexvit_base_patch16_siglip', options=SMALL, checkpoint=str(tmp_path)
    )
    theirs, teacher = theirs.double(), teacher.double()
    rows, columns = size[0] // 16, size[1] // 16
    patches = images_of(*size).unflatten(2, (rows, 16)).unflatten(4, (columns, 16)).permute(0, 2, 4, 3, 5, 1)
    mask, grid = torch.ones(2, rows * columns), torch.tensor([[rows, columns]] * 2)
    with torch.no_grad():
        wanted = theirs(patches.flatten(3).flatten(1, 2), mask, grid)
        tokens = teacher.network.forward_features(images_of(*size))
        assert largest_error(tokens, wanted.last_hidden_state) < 1e-6
        assert largest_error(teacher.network.forward_head(tokens), wanted.pooler_output) < 1e-6


def test_aimv2__equals_transformers(tmp_path, student, hugging_face):
    config = hugging_face.Aimv2VisionConfig(
        hidden_size=32, intermediate_size=88, num_hidden_layers=2, num_attention_heads=2, image_size=224, use_head=False
    )
    theirs = scattered(hugging_face.Aimv2VisionModel(config))
    theirs.save_pretrained(tmp_path)
    teacher = TimmTeacher(
        student=student, model='aimv2_large_patch14_224', options=SMALL, img_size=224, checkpoint=str(tmp_path),
        resample='bilinear',
    )  # fmt: skip
    theirs, teacher = theirs.double(), teacher.double()
    with torch.no_grad():
        wanted = theirs(images_of()).last_hidden_state
        assert largest_error(teacher.network.forward_features(images_of()), wanted) < 1e-6


@pytest.mark.parametrize('act', ['quick_gelu', 'gelu'])
def test_clip__equals_transformers(tmp_path, student, hugging_face, act):
    """MetaCLIP and every other CLIP in Hugging Face's layout."""
    config = hugging_face.CLIPVisionConfig(**SIGLIP, image_size=224, patch_size=16, hidden_act=act)
    theirs = scattered(hugging_face.CLIPVisionModel(config))
    theirs.save_pretrained(tmp_path)
    model = f'vit_base_patch16_clip_{"quickgelu_" if act == "quick_gelu" else ""}224'
    teacher = TimmTeacher(student=student, model=model, options=SMALL, checkpoint=str(tmp_path))
    theirs, teacher = theirs.double(), teacher.double()
    with torch.no_grad():
        wanted = theirs.vision_model.post_layernorm(theirs(images_of()).last_hidden_state)
        assert largest_error(teacher.network.forward_features(images_of()), wanted) < 1e-6


@pytest.mark.parametrize('stacked', [False, True], ids=['blocks', 'stacked blocks'])
def test_big_vision__equals_timm(tmp_path, student, stacked):
    source = scattered(timm.create_model('vit_base_patch16_siglip_224', num_classes=0, **SMALL, **TANH))
    np.savez(tmp_path / 'file.npz', **big_vision_layout(source.state_dict(), 2, stacked=stacked))
    by_timm = timm.create_model('vit_base_patch16_siglip_224', num_classes=0, **SMALL, **TANH).eval()
    by_timm.load_pretrained(str(tmp_path / 'file.npz'))
    teacher = TimmTeacher(
        student=student,
        model='vit_base_patch16_siglip_224',
        options=SMALL | TANH,
        checkpoint=str(tmp_path / 'file.npz'),
    )
    source, by_timm, teacher = source.double(), by_timm.double(), teacher.double()
    wanted = by_timm(images_of())
    assert torch.equal(wanted, source(images_of()))
    assert torch.equal(teacher.network(images_of()), wanted)
    ours = our_vit(tmp_path / 'file.npz', 224, position='learned', cls_token=False, activation='gelu_tanh')
    assert largest_error(ours(images_of()).tokens('output'), source.forward_features(images_of())) < 1e-6


@pytest.mark.parametrize('kind', BY_TIMM)
def test_authors_files__equal_what_timm_loads(tmp_path, student, kind):
    model, sizes, source, weights = published(kind)
    torch.save({'state_dict': weights}, tmp_path / 'file.pth')
    teacher = TimmTeacher(student=student, model=model, options=sizes, checkpoint=str(tmp_path / 'file.pth'))
    side = teacher.view.image_hw[0]
    given = sizes if kind == 'PE spatial' else {**sizes, 'img_size': side}  # of which timm resizes no file at once
    by_timm = timm.create_model(
        model, pretrained=True, pretrained_cfg_overlay=dict(state_dict=weights), num_classes=0, **given
    ).eval()
    by_timm.set_input_size(side)
    images = images_of(side, side).float()
    with torch.no_grad():
        assert torch.equal(teacher.network.forward_features(images), by_timm.forward_features(images))
        if kind != 'C-RADIO' and source.patch_embed.img_size[0] == side:  # nothing was resized
            assert torch.equal(source.forward_features(images), by_timm.forward_features(images))


@pytest.mark.parametrize(
    ('kind', 'options'),
    [
        ('EVA-02', dict(inner_norm='mlp', final_norm=False)),
        ('EVA-02 small', dict(final_norm=False)),
        ('EVA-02 CLIP', dict(inner_norm='both', patch_size=16)),
        ('OpenCLIP', dict(cls_token=False)),
    ],
)
def test_our_vit__equals_timm_on_the_authors_files(tmp_path, kind, options):
    _, _, source, weights = published(kind)
    torch.save(weights, tmp_path / 'file.pth')
    if kind.startswith('EVA'):
        eva = dict(rope='eva02', activation='swiglu', width=48, heads=3, mlp=128, patch_size=14)
        ours = our_vit(tmp_path / 'file.pth', 224, position='learned', **{**eva, **options})
    else:
        ours = our_vit(tmp_path / 'file.pth', 224, position='learned', **options)
    with torch.no_grad():
        wanted = source.double().forward_intermediates(images_of(), indices=[1], output_fmt='NLC')[1][0]
        found = ours(images_of(), taps=('block:1',)).tokens('block:1')
        assert largest_error(found[:, ours.num_prefix :], wanted) < 1e-6


@pytest.mark.parametrize(
    ('kind', 'message'),
    [('EVA-02', "rope='eva02', .*activation='swiglu'"), ('OpenCLIP', 'Build it with cls_token=False')],
)
def test_vit_teacher__says_which_options_the_file_needs(tmp_path, student, kind, message):
    *_, weights = published(kind)
    torch.save(weights, tmp_path / 'file.pth')
    arch = (
        dict(width=48, depth=2, num_heads=3, mlp_ratio=128 / 48)
        if kind == 'EVA-02'
        else dict(width=32, depth=2, num_heads=2)
    )
    options = dict(
        student=student, arch=arch, patch_size=14 if kind == 'EVA-02' else 16, network=dict(position='learned')
    )
    with pytest.raises(ValueError, match=message):
        ViTTeacher(**options, checkpoint=str(tmp_path / 'file.pth'))


@pytest.mark.parametrize('kind', ['PE core', 'EVA-02', 'OpenCLIP', 'C-RADIO'])
def test_timm_teacher__file_of_another_model_is_named(tmp_path, student, kind):
    *_, weights = published(kind)
    torch.save(weights, tmp_path / 'file.pth')
    with pytest.raises(ValueError, match=rf"file.pth does not fit timm's {WRONG[kind][0]}: it holds {WRONG[kind][1]}"):
        TimmTeacher(student=student, model=WRONG[kind][0], options=SMALL, checkpoint=str(tmp_path / 'file.pth'))


WRONG = {
    'PE core': (
        'vit_base_patch16_clip_224',
        "Perception Encoder in its authors' layout: .*, with a cls token. Use dict",
    ),
    'EVA-02': ('vit_base_patch16_224', "EVA-02 in its authors' layout: width 48, 2 blocks, patches of 14 pixels"),
    'OpenCLIP': ('vit_base_patch16_224', "SigLIP or SigLIP 2 in OpenCLIP's layout: .*, without a cls token. Use dict"),
    'C-RADIO': ('vit_small_patch16_dinov3', "C-RADIO in its authors' layout: .* with a cls token and 7 registers"),
}
