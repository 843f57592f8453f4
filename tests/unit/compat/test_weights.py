"""What a file gave a network is one line; a file of another network is refused, in every way that the hosts load files."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner, load_checkpoint
from mmengine.runner import checkpoint as mmengine_checkpoint

from mkd_plugin import get_config
from mkd_plugin.checkpoint.read import CheckpointError
from mkd_plugin.compat.weights import FILES, load_state_dict

ARCH = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)
VIT = 2 + 2 + 2 * 12 + 2  # mmpretrain's: cls and positions, patch embedding, two blocks, norm


@pytest.fixture
def said(monkeypatch):
    """The lines that are logged."""
    lines: list[str] = []
    monkeypatch.setattr(
        'mkd_plugin.compat.weights.print_log', lambda text, logger=None, level=logging.INFO: lines.append(text)
    )
    return lines


def vit(*, img_size: int = 32, checkpoint=None, prefix=None, **arch):
    """mmpretrain's own ViT."""
    from mmpretrain.models import VisionTransformer

    init = dict(type='Pretrained', checkpoint=str(checkpoint), prefix=prefix) if checkpoint else None
    return VisionTransformer(arch=dict(ARCH, **arch), img_size=img_size, patch_size=8, init_cfg=init)


def classifier(classes: int = 10, **arch):
    """mmpretrain's own classifier on its own ViT."""
    from mmpretrain.models import ImageClassifier

    backbone = dict(type='VisionTransformer', arch=dict(ARCH, **arch), img_size=32, patch_size=8)
    head = dict(type='VisionTransformerClsHead', num_classes=classes, in_channels=dict(ARCH, **arch)['embed_dims'])
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return ImageClassifier(backbone=backbone, head=head)


@pytest.fixture
def save(tmp_path):
    def save_as(module, prefix='', name='file.pth', drop=()):
        state = {prefix + key: value for key, value in module.state_dict().items() if not key.startswith(tuple(drop))}
        torch.save(dict(state_dict=state), tmp_path / name)
        return str(tmp_path / name)

    return save_as


def test_load_checkpoint__what_fits_is_one_line(save, said):
    source, target = classifier(), classifier()
    path = save(source)
    load_checkpoint(target, path, map_location='cpu')
    assert said == [
        f'loaded {path} into ImageClassifier: matched {VIT + 2}, missing 0, unexpected 0, resized 0',
    ]
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_load_checkpoint__the_backbone_alone_goes_on_with_a_line(save, said):
    source, target = vit(), classifier()
    head = target.head.layers.head.weight.clone()
    load_checkpoint(target, save(source, 'backbone.'))
    assert said[0].endswith(
        f'into ImageClassifier: matched {VIT}, missing 2 (head.layers.head.weight, head.layers.head.bias), unexpected 0, '
        'resized 0'
    )
    assert torch.equal(target.backbone.cls_token, source.cls_token)
    assert torch.equal(target.head.layers.head.weight, head)


def test_load_checkpoint__a_head_for_other_classes_is_new(save, said):
    load_checkpoint(classifier(classes=3), save(classifier()))
    assert 'missing 2 (head.layers.head.weight, head.layers.head.bias), unexpected 0' in said[0]


def test_load_checkpoint__a_backbone_into_a_detector(save, said):
    """Neck and heads of mmdet's detector are new; the ViT is ours."""
    cfg = get_config('downstream/mmdet/vit-digits_cascade-mask-rcnn_digit-scenes').model
    cfg.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MODELS.build(cfg)
    load_checkpoint(detector, save(detector.backbone, 'backbone.'))
    matched, missing = (
        len(detector.backbone.state_dict()),
        len(detector.state_dict()) - len(detector.backbone.state_dict()),
    )
    assert f'matched {matched}, missing {missing} (neck.' in said[0]


OTHERS = {
    'width': (
        dict(embed_dims=48),
        r'28 tensors have another shape: backbone\.cls_token is \(1, 1, 48\) in the file and',
    ),
    'deeper': (
        dict(num_layers=4),
        r'number of blocks differs, the network lacks backbone\.layers\.2, backbone\.layers\.3',
    ),
    'shallower': (dict(num_layers=1), r'number of blocks differs, the file lacks backbone\.layers\.1'),
}


@pytest.mark.parametrize(('arch', 'message'), OTHERS.values(), ids=OTHERS)
def test_load_checkpoint__another_network_is_refused(save, said, arch, message):
    with pytest.raises(CheckpointError, match=f'is of another network than ImageClassifier: .*{message}') as error:
        load_checkpoint(classifier(), save(classifier(**arch)))
    assert len(str(error.value).splitlines()) <= 12 and 'Give the checkpoint of this architecture' in str(error.value)
    assert said == []


def test_load_checkpoint__nothing_fits(save):
    with pytest.raises(CheckpointError, match=r'no tensor fits\.\n    the file has encoder\.cls_token, .* and 27 more'):
        load_checkpoint(classifier(), save(vit(), 'encoder.'))
    with pytest.raises(CheckpointError, match='it has 0% of the weights of backbone'):
        load_checkpoint(classifier(), save(classifier(), drop=('backbone.',)))


def test_load_checkpoint__strict_names_what_differs_on_every_rank(save, monkeypatch):
    """mmengine raises on rank 0 alone, and the others go on."""
    monkeypatch.setattr(mmengine_checkpoint, 'get_dist_info', lambda: (1, 2))
    with pytest.raises(RuntimeError, match=r'missing 2 \(head\.layers\.head\.weight, .*\), unexpected 1 \(extra\)'):
        source = vit()
        source.register_buffer('extra', torch.ones(1))
        target = classifier()
        state = {'backbone.' + name: value for name, value in vit().state_dict().items()} | {'extra': torch.ones(1)}
        load_state_dict(target, state, source='file.pth', strict=True)


@pytest.mark.parametrize('prefix', [None, 'backbone.'])
def test_init_cfg__positions_are_resized_by_the_host(save, said, prefix):
    network = vit(img_size=64, checkpoint=save(vit(), prefix or ''), prefix=prefix)
    network.init_weights()
    assert said[0].endswith(
        f'into VisionTransformer: matched {VIT - 1}, missing 0, unexpected 0, resized 1 (pos_embed)'
    )


INIT = {
    'width': (dict(embed_dims=48), '', None, r'tensors have another shape: cls_token is \(1, 1, 32\) in the file'),
    'depth': (dict(num_layers=3), '', None, r'number of blocks differs, the file lacks layers\.2'),
    'names': ({}, 'encoder.', None, 'no tensor fits'),
    'prefix': ({}, 'backbone.', 'encoder.', r"prefix='encoder\.': .*file\.pth has backbone"),
}


@pytest.mark.parametrize(('arch', 'inside', 'prefix', 'message'), INIT.values(), ids=INIT)
def test_init_cfg__that_does_not_fit_is_refused(save, arch, inside, prefix, message):
    network = vit(checkpoint=save(vit(), inside), prefix=prefix, **arch)
    with pytest.raises(CheckpointError, match=message):
        network.init_weights()


def test_init_cfg__extra_layers_of_a_host_are_new(tmp_path, said):
    """mmdet's ResNet with deformable convolutions, from a file of the plain one with its classifier."""
    from mmdet.models import ResNet

    plain = ResNet(18, num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,))
    state = plain.state_dict() | {'layer4.0.conv1.weight': torch.ones(1), 'fc.weight': torch.ones(1)}
    torch.save(state, tmp_path / 'resnet.pth')
    less = {name: value for name, value in state.items() if 'downsample' not in name}
    torch.save(less, tmp_path / 'less.pth')
    for name in ('resnet', 'less'):
        load_checkpoint(copy.deepcopy(plain), str(tmp_path / f'{name}.pth'))
    assert 'missing 0, unexpected 2 (layer4.0.conv1.weight, fc.weight)' in said[0] and 'missing 10 (' in said[1]


def test_init_cfg__of_a_host_that_calls_torch_itself(tmp_path, said):
    """mmseg's BEiT loads in its own ``init_weights``, and mmengine's functions have no part in it."""
    from mmseg.models import BEiT

    def beit(**changes):
        options = dict(
            img_size=32, patch_size=8, embed_dims=32, num_layers=2, num_heads=2, out_indices=(1,), qv_bias=True
        )
        return BEiT(**{**options, **changes})

    class Segmentor(BaseModule):
        def __init__(self, file, **changes):
            super().__init__()
            self.backbone = beit(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / file)), **changes)

    source = beit()
    torch.save(dict(state_dict=source.state_dict()), tmp_path / 'beit.pth')
    plain = {
        key: value for key, value in source.state_dict().items() if 'relative' not in key
    }  # mmseg itself resizes those
    torch.save(dict(state_dict={'x.' + key: value for key, value in plain.items()}), tmp_path / 'x.pth')
    segmentor = Segmentor('beit.pth')
    segmentor.init_weights()
    assert torch.equal(segmentor.backbone.cls_token, source.cls_token) and ' into BEiT: ' in said[0]
    assert ' unexpected 0' in said[0]
    with pytest.raises(CheckpointError, match='of another network than BEiT: no tensor fits'):
        Segmentor('x.pth').init_weights()
    with pytest.raises(CheckpointError, match=r'the file lacks layers\.2'):
        Segmentor('beit.pth', num_layers=3, out_indices=(2,)).init_weights()


@pytest.fixture
def run(tiny_run, tmp_path):
    """A tiny distillation whose ``load_from`` is a file; its log."""

    def train(path, **changes):
        cfg = tiny_run(tmp_path / 'run', 'iterations', **{'train_cfg.max_iters': 2, **changes})
        cfg.resume, cfg.load_from, cfg.log_level = False, str(path), 'INFO'
        runner = Runner.from_cfg(cfg)
        runner.train()
        return runner

    yield train
    MMLogger._instance_dict.clear()


def test_load_from__another_network_is_refused_before_training(run, tiny_run, tmp_path, save):
    cfg = tiny_run(tmp_path / 'other')
    cfg.model.backbone.arch.width *= 2
    path = save(MODELS.build(cfg.model))
    with pytest.raises(CheckpointError, match='is of another network than MaskedDistiller: .* have another shape'):
        run(path)
    assert not list((tmp_path / 'run').rglob('*.pth'))


def test_load_from__is_one_line_in_the_log(run, tiny_run, tmp_path, save):
    model = MODELS.build(tiny_run(tmp_path / 'other').model)
    path = save(model.backbone, 'backbone.')
    run(path)
    (log,) = (tmp_path / 'run').glob('*/*.log')
    lines = [line for line in log.read_text().splitlines() if f'loaded {path} into' in line]
    assert len(lines) == 1 and f'matched {len(model.backbone.state_dict())}, ' in lines[0]


def test_load_state_dict__sees_through_wrappers(save, said, monkeypatch):
    class Wrapper(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    monkeypatch.setattr('mkd_plugin.compat.weights.is_model_wrapper', lambda module: isinstance(module, Wrapper))
    monkeypatch.setattr(mmengine_checkpoint, 'is_model_wrapper', lambda module: isinstance(module, Wrapper))
    target = classifier()
    target.backbone = Wrapper(target.backbone)
    load_checkpoint(Wrapper(target), save(classifier()))
    assert f'into ImageClassifier: matched {VIT + 2}, missing 0, unexpected 0' in said[0]


def test_weights_in_memory_are_left_to_mmengine(said):
    """Averages and normalisation statistics that hooks pass on are parts by intention."""
    target = classifier()
    mmengine_checkpoint.load_state_dict(target, {'head.layers.head.bias': torch.ones(10)})
    assert said == [] and (target.head.layers.head.bias == 1).all()


def test_remember_file__holds_no_tensor(save):
    before = len(FILES)
    checkpoint = mmengine_checkpoint.CheckpointLoader.load_checkpoint(save(vit()))
    assert len(FILES) == before + VIT
    del checkpoint
    assert len(FILES) == before
