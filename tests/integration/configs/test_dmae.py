"""DMAE's recipes: their numbers, what the teacher sees and computes, and the losses in a few lines of float64."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from helpers.networks import hidden_masks, poison, scatter_weights
from mmengine.config import Config
from mmpretrain.structures import DataSample
from test_configs import build
from torch import Tensor, nn
from torch.nn import functional as F

from mkd_plugin.models.protocols import StudentContext
from mkd_plugin.models.vit.block import resolve_arch
from mkd_plugin.registry import build as build_component
from mkd_plugin.structures import Region, TokenMask
from mkd_plugin.utils.configs import ablations, get_ablation, get_config

MAIN = 'dmae/dmae_vit-base-p16_teacher-vit-large_8xb512-100e_in1k'
RAW = 'dmae/dmae-raw_vit-base-p16_teacher-vit-large_8xb512-100e_in1k'
# shared/methods.md, DMAE: student, its block, teacher, its block (both counted from 1), both sides L2-normalised
RECIPES = {
    MAIN: ('b', 9, 'mae', 'l', 18, True),
    RAW: ('b', 9, 'mae', 'l', 18, False),
    'dmae/dmae_vit-small-p16_teacher-vit-large_8xb512-100e_in1k': ('s', 9, 'mae', 'l', 18, True),
    'dmae/dmae_vit-small-p16_teacher-vit-base_8xb512-100e_in1k': ('s', 9, 'mae', 'b', 9, True),
    'dmae/dmae_vit-tiny-p16_teacher-vit-base_8xb512-100e_in1k': ('ti', 9, 'mae', 'b', 9, True),
    'dmae/dmae-dino_vit-base-p16_8xb512-100e_in1k': ('b', 9, 'dino', 'b', 9, True),
    'dmae/dmae-moco-v3_vit-base-p16_8xb512-100e_in1k': ('b', 9, 'moco', 'b', 9, True),
}
BASELINES = {
    f'mae/mae_vit-{size}-p16_8xb512-100e_in1k': arch for size, arch in dict(base='b', small='s', tiny='ti').items()
}
PAPER = {
    'default': 84.0, 'features-raw': 84.0, 'loss-l2': 83.3, 'weight-0.5': 83.9, 'weight-2': 84.0, 'weight-4': 84.0,
    'projector-linear': 83.6, 'projector-three-layers': 83.8, 'student-layer-3': 82.6, 'student-layer-6': 83.6,
    'student-layer-12': 83.4, 'teacher-layer-top': 83.3, 'teacher-layer-bottom': 82.1, 'layers-6-12': 84.2,
    'decoder-depth-2': 83.7, 'decoder-depth-4': 83.8, 'mask-ratio-0.9': None, 'visible-10': 83.6, 'visible-4': 82.4,
    'visible-2': None, 'features-without-pixels': None, 'framework-dino': None, 'framework-moco-v3': None,
    'pixels-normalised': None,
}  # fmt: skip
# rate at batch 1024, layer decay, drop path, warm-up, epochs
FINETUNING = {
    'dmae-ft_vit-base-p16_8xb128-100e_in1k': ('b', 2e-3, 0.65, 0.1, 5, 100),
    'dmae-ft_vit-small-p16_8xb128-100e_in1k': ('s', 2e-3, 0.65, 0.1, 5, 100),
    'dmae-ft_vit-tiny-p16_8xb128-100e_in1k': ('ti', 2e-3, 0.65, 0.1, 5, 100),
    'dmae-ft_vit-base-p16_8xb128-100e_in1k-1p': ('b', 2e-3, 0.65, 0.1, 5, 100),
    'dmae-ft_vit-base-p16_8xb128-100e_in1k-10p': ('b', 2e-3, 0.65, 0.1, 5, 100),
    'dmae-ft-script_vit-base-p16_8xb128-100e_in1k': ('b', 2e-3, 0.75, 0.15, 20, 100),
}


def narrow(cfg: Config, student_heads: int = 2) -> None:
    """Networks of 24 channels and of the very depths the recipe names, random weights, 4 × 4 patches."""
    model = cfg.model
    for part in (model.backbone, *(teacher for teacher in model.teachers.values() if 'arch' in teacher)):
        part.arch = dict(width=24, depth=resolve_arch(part.arch).depth, num_heads=2)
    model.backbone.arch.num_heads = student_heads
    model.backbone.img_size = 4 * model.backbone.patch_size
    for seed, teacher in enumerate(model.teachers.values()):
        if 'checkpoint' in teacher:
            teacher.update(checkpoint=None, seed=seed, img_size=None)
        if teacher.type == 'CLIPTeacher':
            teacher.network = dict(projection=16)
    for objective in model.objectives.values():
        if objective.get('head') and objective.head.type == 'TransformerDecoder':
            objective.head.update(depth=1, width=16, num_heads=2)


def small(cfg: Config, student_heads: int = 2) -> nn.Module:
    """The recipe's model, narrow, in float64, its weights moved off their first values."""
    narrow(cfg, student_heads)
    return scatter_weights(build(cfg).double())


def images_of(batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, 64, 64, dtype=torch.float64)


def given(hidden_BL: Tensor) -> list[DataSample]:
    return [DataSample().set_mask(row) for row in hidden_BL]


def check_schedule(cfg: Config, *, lr: float, batch: int, epochs: int, warm_up: int) -> None:
    """What pre-training recipes have in common: AdamW, cosine to 0, crops, no clip, no drop path."""
    optimizer, (rise, fall) = cfg.optim_wrapper.optimizer, cfg.param_scheduler
    assert (optimizer.type, optimizer.betas, optimizer.weight_decay) == ('AdamW', (0.9, 0.95), 0.05)
    assert optimizer.lr == pytest.approx(lr)
    assert 8 * cfg.train_dataloader.batch_size == batch == cfg.auto_scale_lr.base_batch_size
    assert (rise.begin, rise.end, fall.begin, fall.end, fall.eta_min) == (0, warm_up, warm_up, epochs, 0)
    assert cfg.train_cfg.max_epochs == epochs
    assert 'clip_grad' not in cfg.optim_wrapper and 'drop_path_rate' not in cfg.model.backbone
    crop, flip = cfg.train_dataloader.dataset.pipeline[1:3]
    assert (crop.scale, tuple(crop.crop_ratio_range), flip.prob) == (224, (0.2, 1.0), 0.5)


@pytest.mark.parametrize('name', RECIPES)
def test_recipe__has_the_papers_values(name):
    student, block, teacher, arch, aligned, normalised = RECIPES[name]
    cfg = get_config(name)
    check_schedule(cfg, lr=1.5e-4 * 4096 / 256, batch=4096, epochs=100, warm_up=20)
    model = cfg.model
    assert (model.backbone.arch, model.masking.ratio) == (student, 0.75)
    assert set(model.teachers) == {'pixel', teacher}
    assert (model.teachers[teacher].arch, model.teachers[teacher].sees) == (arch, 'visible')
    pixel, feature = model.objectives.pixel, model.objectives.feature
    assert (pixel.loss.type, pixel.region, pixel.get('normalize')) == ('MSELoss', 'hidden', None)
    assert (pixel.head.depth, pixel.head.width) == (8, 512)
    assert (feature.student, feature.tap) == (f'block:{block - 1}', f'block:{aligned - 1}')
    assert (feature.loss.type, feature.weight, feature.region) == ('L1Loss', 1.0, 'visible+cls')
    assert (feature.head.type, feature.head.num_layers) == ('ProjectorHead', 2)
    assert (feature.normalize is not None, feature.normalize_prediction) == (normalised, normalised)


@pytest.mark.parametrize('name', BASELINES)
def test_baseline__is_mae_for_as_long(name):
    cfg = get_config(name)
    check_schedule(cfg, lr=2.4e-3, batch=4096, epochs=100, warm_up=20)
    assert cfg.model.backbone.arch == BASELINES[name]
    assert cfg.model.objectives == {'pixel': get_config(MAIN).model.objectives.pixel}


@pytest.mark.parametrize('name', FINETUNING)
def test_finetuning__has_the_papers_values(name):
    cfg = get_config(f'dmae/finetune/in1k/{name}')
    arch, lr, decay, drop_path, warm_up, epochs = FINETUNING[name]
    assert (cfg.model.backbone.arch, cfg.model.head.in_channels) == (arch, resolve_arch(arch).width)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(lr)
    assert (cfg.optim_wrapper.paramwise_cfg.layer_decay_rate, cfg.model.backbone.drop_path_rate) == (decay, drop_path)
    assert (cfg.param_scheduler[0].end, cfg.param_scheduler[1].begin) == (warm_up, warm_up)
    assert cfg.param_scheduler[1].end == cfg.train_cfg.max_epochs == epochs
    assert (cfg.train_dataloader.batch_size, cfg.optim_wrapper.optimizer.weight_decay) == (128, 0.05)


def test_ablations__have_the_papers_numbers():
    assert {name: row['paper'] for name, row in ablations('dmae').items()} == PAPER


@pytest.mark.parametrize(
    ('row', 'visible'), [('default', 49), ('mask-ratio-0.9', 19), ('visible-10', 10), ('visible-4', 4)]
)
def test_masking__visible_patches_of_196(row, visible):
    student = StudentContext(SimpleNamespace(grid=(14, 14)), (0.0,) * 3, (1.0,) * 3)
    assert build_component(get_ablation('dmae', row).model.masking, student=student).num_visible == visible


@pytest.mark.parametrize(
    ('row', 'teacher', 'blocks'),
    [
        ('default', 'mae', 18),
        ('layers-6-12', 'mae', 24),
        ('teacher-layer-bottom', 'mae', 6),
        ('framework-dino', 'dino', 9),
    ],
)
def test_teacher__runs_the_visible_tokens_up_to_the_aligned_block(row, teacher, blocks):
    """Nothing above it, each block once, cls and 4 of 16 patches; and there is no decoder to run."""
    model, ran = small(get_ablation('dmae', row)), []
    network = model.teachers[teacher].network
    for index, block in enumerate(network.layers):
        block.register_forward_hook(lambda _, args, result, i=index: ran.append((i, result[0].shape[1])))
    model.loss(images_of())
    assert ran == [(index, 5) for index in range(blocks)]
    assert not [name for name, _ in model.teachers.named_modules() if 'decoder' in name]


@pytest.mark.parametrize('name', RECIPES)
def test_alignment__does_not_read_hidden_pixels(name):
    """They are NaN: only the pixel loss, whose target they are, becomes NaN."""
    model, images, hidden_BL = small(get_config(name)), images_of(), hidden_masks()
    clean, poisoned = (model.loss(x, given(hidden_BL)) for x in (images, poison(images, hidden_BL, patch=16)))
    assert poisoned['loss_feature'].item() == clean['loss_feature'].item()
    assert poisoned['loss_pixel'].isnan() and clean['loss_pixel'].isfinite()


def blocks_by_hand(network: nn.Module, images: Tensor, hidden_BL: Tensor) -> list[Tensor]:
    """Raw outputs of all blocks on cls and visible tokens, which are picked after the whole image was embedded."""
    tokens = network.embed(images, None)
    x = torch.stack([torch.cat([one[:1], one[1:][~hidden]]) for one, hidden in zip(tokens, hidden_BL, strict=True)])
    outputs = []
    for block in network.layers:
        x = x + block.attn(block.ln1(x)).update_BRD
        x = x + block.ffn(block.ln2(x))
        outputs.append(x)
    return outputs


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(-1, keepdim=True).sqrt()


def project(head: nn.Module, x: Tensor) -> Tensor:
    for layer in head.layers:
        x = F.gelu(x) if isinstance(layer, nn.GELU) else x @ layer.weight.T + layer.bias
    return x


@pytest.mark.parametrize(
    ('row', 'pairs', 'side', 'distance', 'weight'),
    [
        ('default', [(9, 18)], unit, torch.abs, 1.0),
        ('features-raw', [(9, 18)], lambda x: x, torch.abs, 1.0),
        ('loss-l2', [(9, 18)], unit, torch.square, 1.0),
        ('weight-0.5', [(9, 18)], unit, torch.abs, 0.5),
        ('projector-linear', [(9, 18)], unit, torch.abs, 1.0),
        ('projector-three-layers', [(9, 18)], unit, torch.abs, 1.0),
        ('layers-6-12', [(6, 12), (12, 24)], unit, torch.abs, 1.0),
        ('student-layer-3', [(3, 6)], unit, torch.abs, 1.0),
        ('framework-moco-v3', [(9, 9)], unit, torch.abs, 1.0),
    ],
)
def test_loss__alignment_by_hand(row, pairs, side, distance, weight):
    model, images, hidden_BL = small(get_ablation('dmae', row)), images_of(), hidden_masks()
    (teacher,) = (part.network for name, part in model.teachers.items() if name != 'pixel')
    theirs, ours = (blocks_by_hand(network, images, hidden_BL) for network in (teacher, model.backbone))
    heads = model.objectives['feature'].heads
    terms = [
        distance(side(project(head, ours[block - 1])) - side(theirs[aligned - 1])).mean()
        for head, (block, aligned) in zip(heads, pairs, strict=True)
    ]
    wanted = weight * sum(terms).item()  # eq. 2 sums over layers
    assert model.loss(images, given(hidden_BL))['loss_feature'].item() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize('row', ['default', 'pixels-normalised'])
def test_loss__pixels_by_hand(row):
    model, images, hidden_BL = small(get_ablation('dmae', row)), images_of(), hidden_masks()
    patches_BLD = torch.stack([
        images[:, :, 16 * (i // 4) : 16 * (i // 4) + 16, 16 * (i % 4) : 16 * (i % 4) + 16].permute(0, 2, 3, 1).flatten(1)
        for i in range(16)
    ], dim=1)  # fmt: skip
    if row == 'pixels-normalised':
        mean, variance = patches_BLD.mean(-1, keepdim=True), patches_BLD.var(-1, keepdim=True)
        patches_BLD = (patches_BLD - mean) / (variance + 1e-6).sqrt()
    mask = TokenMask.from_hidden(hidden_BL, 4)
    (decoder,) = model.objectives['pixel'].heads
    predicted_BLD = decoder(model.backbone(images, mask), ('output',), Region('all', False).tokens(mask))
    wanted = (predicted_BLD - patches_BLD).square()[hidden_BL].mean().item()
    assert model.loss(images, given(hidden_BL))['loss_pixel'].item() == pytest.approx(wanted, rel=1e-12)
