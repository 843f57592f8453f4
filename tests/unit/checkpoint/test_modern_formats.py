"""DINOv3, SigLIP and EVA-02: files are recognised, loaded strictly into students and teachers, trained, saved and exported."""

from __future__ import annotations

import pytest
import timm
import torch
from helpers.networks_modern import NETWORKS, authors_dinov3, ours_of, timm_network

from mkd_plugin import load_student
from mkd_plugin.checkpoint import load_backbone
from mkd_plugin.checkpoint.infer_arch import infer_options, options_in_metadata
from mkd_plugin.checkpoint.load import convert_weights, fill_network
from mkd_plugin.engine.provenance import describe
from mkd_plugin.interop.convert import convert_checkpoint
from mkd_plugin.interop.open_model import open_model
from mkd_plugin.interop.specs import parse_specs
from mkd_plugin.models.students import MaskTokenViT
from mkd_plugin.models.vit import VisionTransformer
from mkd_plugin.registry import MODELS

FORMATS = dict(eva02_small='beit', eva02_base='eva02', eva02_clip='eva02', siglip='timm', siglip2='timm')


def save(weights, path):
    torch.save(weights, path)
    return str(path)


@pytest.mark.parametrize('name', NETWORKS)
def test_infer_options__are_those_of_the_network(name):
    found, converted = convert_weights(timm_network(name).state_dict(), 'file')
    assert found.format.name == FORMATS.get(name, 'timm_dinov3')
    assert 'DINOv2' not in found.format.title
    known = dict(num_heads=4, img_size=32, layer_scale=None)
    options = infer_options(converted.tensors, known)
    wanted = VisionTransformer(**ours_of(name, layer_scale=None)).options
    if name == 'siglip2':  # nothing in timm's file says which GELU it is
        options['activation'] = wanted['activation']
    assert options == wanted


def test_infer_options__dinov3_is_for_images_of_any_size():
    _, converted = convert_weights(timm_network('dinov3', patch_size=16).state_dict(), 'file')
    assert infer_options(converted.tensors, {})['img_size'] == 224


@torch.no_grad()
def test_infer_options__dinov2_giant_has_gates_and_no_rotary_positions():
    torch.manual_seed(0)
    sizes = dict(patch_size=8, embed_dim=48, depth=2, num_heads=4, num_classes=0, img_size=32)
    theirs = timm.create_model('vit_giant_patch14_reg4_dinov2', **sizes).eval()
    _, converted = convert_weights(theirs.state_dict(), 'file')
    ours = VisionTransformer(**infer_options(converted.tensors, dict(num_heads=4))).eval()
    assert (ours.options['activation'], ours.options['rope']) == ('swiglu', None)
    fill_network(ours, dict(state_dict=theirs.state_dict()), 'file')
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(ours(images).tokens('output'), theirs.forward_features(images), rtol=1e-5, atol=1e-5)


def test_convert_weights__refuses_a_perception_encoder():
    with torch.device('meta'):
        theirs = timm.create_model('vit_pe_core_tiny_patch16_384', depth=1, num_classes=0)
    with pytest.raises(
        ValueError, match="file holds Perception Encoder in timm's layout: .* Use dict\\(type='TimmTeacher'"
    ):
        convert_weights(theirs.state_dict(), 'file')


def released_models():
    names = [name for kind in ('vit*dinov3*', 'eva02*', 'vit*siglip*') for name in timm.list_models(kind)]
    return [name for name in names if 'enormous' not in name]  # which has its norms behind the branches


def test_infer_options__of_every_model_of_timm_in_its_size():
    """Without values, and with one block: heads, eps and every shape."""
    names = released_models()
    assert len(names) > 50
    for name in names:
        with torch.device('meta'):
            theirs = timm.create_model(name, depth=1, num_classes=0)
            _, converted = convert_weights(theirs.state_dict(), name)
            options = infer_options(converted.tensors, {})
            ours = VisionTransformer(**options)
        block = theirs.blocks[0]
        assert (options['arch']['num_heads'], options['norm_eps']) == (block.attn.num_heads, block.norm1.eps), name
        known = {key: value.shape for key, value in converted.tensors.items() if not key.startswith('ln2')}
        assert known == {key: value.shape for key, value in ours.state_dict().items()}, name
        assert not converted.unknown, name


@pytest.mark.parametrize('name', ['dinov3_qkvb', 'dinov3_plus', 'dinov3'])
@torch.no_grad()
def test_load_backbone__names_of_dinov3s_authors(tmp_path, name):
    """With a bias whose part for keys is masked, and is not a number in the file."""
    theirs = timm_network(name).double()
    file = save(authors_dinov3(theirs.state_dict()), tmp_path / 'file.pth')
    ours = VisionTransformer(**ours_of(name)).double().eval()
    report = load_backbone(ours, file)
    assert (report.format, report.missing, report.unexpected) == ("DINOv3 in its authors' layout", [], [])
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(ours(images).tokens('output'), theirs.forward_features(images), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('name', NETWORKS)
def test_student_and_teacher__start_from_the_file_strictly_and_train(tmp_path, name):
    """One step of a student from the file, taught by the same file; then saved, opened again, and exported."""
    theirs = timm_network(name)
    file = save(theirs.state_dict(), tmp_path / 'timm.pth')
    options = ours_of(name)
    network = {key: value for key, value in options.items() if key not in ('arch', 'patch_size', 'img_size')}
    region = 'hidden' if 'siglip' in name else 'hidden+cls'
    model = MODELS.build(
        dict(
            type='MaskedDistiller',
            data_preprocessor=dict(mean=[0] * 3, std=[1] * 3),
            backbone=dict(type='VisibleViT', **options, init_cfg=dict(type='Pretrained', checkpoint=file)),
            masking=dict(type='RandomMasking', ratio=0.5),
            teachers=dict(
                file=dict(type='ViTTeacher', arch=options['arch'], patch_size=8, network=network, checkpoint=file),
                average=dict(type='MomentumTeacher', momentum=0.5),
            ),
            objectives={
                teacher: dict(
                    teacher=teacher,
                    tap='block:-1',
                    student='block:-1',
                    head=dict(type='TransformerDecoder', depth=1, width=16, num_heads=2),
                    loss=dict(type='MSELoss'),
                    region=region,
                )
                for teacher in ('file', 'average')
            },
        )
    )
    model.init_weights()
    student, teacher = model.backbone.state_dict(), model.teachers['file'].network
    own = dict(teacher.named_buffers())
    assert all(torch.equal(value, own[key]) for key, value in student.items())
    images = torch.randn(4, 3, 32, 32)
    losses = model.loss(images)
    sum(value for key, value in losses.items() if key.startswith('loss')).backward()
    still = {key for key, parameter in model.backbone.named_parameters() if parameter.grad is None}
    assert still <= {'ln1.weight', 'ln1.bias'}  # the tap comes before it
    checkpoint = tmp_path / 'run.pth'
    meta = dict(mkd_plugin=describe(model))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), checkpoint)
    loaded = load_student(checkpoint)
    with torch.no_grad():
        wanted = (
            model.eval().backbone(loaded.normalise(images.clamp(0, 1)), taps=('block:-1',)).pool('block:-1', 'mean')
        )
        torch.testing.assert_close(loaded.features(images.clamp(0, 1)), wanted)
        larger = loaded.features(torch.rand(1, 3, 48, 40))
    assert larger.shape == (1, 48)
    if model.backbone.options['final_norm']:
        conversion = convert_checkpoint(checkpoint, tmp_path / 'timm', 'timm')
        assert [title.split(':')[0] for title, error in conversion.checks if error is not None] == ['target']
        again = timm.create_model(f'local-dir:{tmp_path / "timm"}', pretrained=True).eval()
        with torch.no_grad():
            tokens = model.backbone(images, taps=('output',)).tokens('output')
            torch.testing.assert_close(again.forward_features(images), tokens, rtol=1e-4, atol=1e-5)


def test_open_model__siglip_by_timms_name(tmp_path):
    """timm's name says which GELU it is, which the file does not."""
    theirs = timm.create_model('vit_base_patch32_siglip_256', depth=1, num_classes=0)
    file = save(theirs.state_dict(), tmp_path / 'siglip.pth')
    created = timm.create_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, 'create_model', lambda name, **options: created(name, **{**options, 'depth': 1}))
        [spec] = parse_specs([f'timm:vit_base_patch32_siglip_256={file}'])
        opened = open_model(spec, known={}, device='cpu')
    options = opened.network.options
    assert (options['activation'], options['cls_token'], opened.network.num_prefix) == ('gelu_tanh', False, 0)
    assert opened.device.type == 'cpu' and opened.final_norm


@pytest.mark.parametrize(
    ('name', 'changes', 'message'),
    [
        (
            'dinov3',
            dict(rope=None),
            r"timm's DINOv3\) holds a network that computes something else .* with rope='dinov3'",
        ),
        ('dinov3', dict(rope='eva02'), "Build it with rope='dinov3'"),
        ('dinov3', dict(norm_eps=1e-6), 'Build it with norm_eps=1e-05'),
        ('dinov3_plus', dict(activation='gelu'), "Build it with activation='swiglu'"),
        ('dinov3', dict(num_registers=0), 'register tokens, which this one lacks'),
        ('eva02_clip', dict(inner_norm='mlp', rope=None), "Build it with rope='eva02', inner_norm='both'"),
        ('siglip', dict(cls_token=True), 'Build it with cls_token=False'),
        ('eva02_base', dict(final_norm=True), 'the file was fine-tuned with a norm after mean pooling'),
    ],
)
def test_load_backbone__another_network_is_refused_with_its_options(tmp_path, name, changes, message):
    file = save(timm_network(name).state_dict(), tmp_path / 'file.pth')
    with pytest.raises(ValueError, match=message):
        load_backbone(VisionTransformer(**ours_of(name, **changes)), file)


def test_load_backbone__a_plain_file_is_not_for_rotary_positions(tmp_path):
    own = VisionTransformer(**ours_of('siglip', cls_token=True))
    file = save(dict(state_dict=own.state_dict()), tmp_path / 'file.pth')
    with pytest.raises(ValueError, match='Build it with rope=None'):
        load_backbone(VisionTransformer(**ours_of('siglip', cls_token=True, rope='eva02')), file)


def test_load_backbone__a_file_of_ours_says_whether_it_has_rotary_positions():
    """Without a table and with registers, names alone would say DINOv3."""
    network = VisionTransformer(**ours_of('dinov3', rope=None))
    meta = dict(meta=dict(mkd_plugin=dict(backbone=network.options)))
    report = fill_network(VisionTransformer(**network.options), dict(state_dict=network.state_dict(), **meta), 'file')
    assert report.missing == []


def test_options_in_metadata__hugging_faces_names_of_activations():
    config = dict(hidden_act='gelu_pytorch_tanh', num_attention_heads=4, layer_norm_eps=1e-6)
    found = options_in_metadata(dict(meta=dict(hf_config=config)))
    assert found == dict(activation='gelu_tanh', num_heads=4, norm_eps=1e-6)


def test_mask_token_vit__starts_without_a_mask_token_in_the_file(tmp_path):
    file = save(timm_network('dinov3').state_dict(), tmp_path / 'file.pth')
    student = MaskTokenViT(**ours_of('dinov3'))
    report = load_backbone(student, file, allow_missing=('mask_token',))
    assert report.missing == ['mask_token']


@pytest.mark.parametrize(
    ('region', 'head', 'message'),
    [
        ('hidden+cls', dict(type='LinearHead'), "The student has no cls token: use region='hidden' without"),
        (
            'hidden',
            dict(type='NeckHead', neck=dict(type='MAEPretrainDecoder')),
            'NeckHead needs a student with a cls token',
        ),
    ],
)
def test_objective__says_that_the_student_has_no_cls(region, head, message):
    if head['type'] == 'NeckHead':
        sizes = dict(
            num_patches=16, patch_size=8, embed_dim=48, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2
        )
        head = dict(type='NeckHead', neck=dict(head['neck'], type='mmpretrain.MAEPretrainDecoder', in_chans=3, **sizes))
    teacher = dict(type='ViTTeacher', arch=ours_of('siglip')['arch'], patch_size=8, seed=0)
    tap = dict(teacher='vit', tap='output') if region != 'hidden' else dict(teacher='pixel', tap='output')
    teachers = dict(vit=teacher) if region != 'hidden' else dict(pixel=dict(type='PixelTeacher'))
    with pytest.raises(ValueError, match=message):
        MODELS.build(
            dict(
                type='MaskedDistiller',
                data_preprocessor=dict(mean=[0] * 3, std=[1] * 3),
                backbone=dict(type='MaskTokenViT', **ours_of('siglip')),
                masking=dict(type='RandomMasking', ratio=0.5),
                teachers=teachers,
                objectives=dict(x=dict(**tap, student='output', head=head, loss=dict(type='MSELoss'), region=region)),
            )
        )


def test_attention_masking__needs_a_teacher_with_cls():
    teacher = dict(
        type='ViTTeacher', arch=ours_of('siglip')['arch'], patch_size=8, seed=0, network=dict(cls_token=False)
    )
    with pytest.raises(ValueError, match="AttentionMasking reads the attention of cls, which 'vit' does not have"):
        MODELS.build(
            dict(
                type='MaskedDistiller',
                data_preprocessor=dict(mean=[0] * 3, std=[1] * 3),
                backbone=dict(type='MaskTokenViT', **ours_of('siglip', cls_token=True)),
                masking=dict(type='AttentionMasking', teacher='vit', ratio=0.5),
                teachers=dict(vit=teacher),
                objectives=dict(
                    x=dict(
                        teacher='vit',
                        tap='output',
                        student='output',
                        head=dict(type='LinearHead'),
                        loss=dict(type='MSELoss'),
                        region='hidden',
                    )
                ),
            )
        )
