"""Hybrid Distill's recipes: their numbers against the paper's, and their data."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from mmcv.transforms import Compose
from mmengine.registry import DefaultScope
from mmpretrain.registry import DATASETS
from PIL import Image
from test_dmae import check_schedule

from mkd_plugin.models.protocols import StudentContext
from mkd_plugin.registry import build as build_component
from mkd_plugin.utils.configs import ablations, get_ablation, get_config

MAIN = 'hybrid_distill/hybrid_vit-base-p16_mae-deit_8xb128-300e_in1k'
FILES = dict(
    mae='mae_pretrain_vit_base.pth',
    deit='deit_base_patch16_224-b5f2ef4d.pth',
    clip='ViT-B-16.pt',
    dino='dino_vitbase16_pretrain.pth',
)
# shared/methods.md, Hybrid Distill: T_c's file, T_m's file, student, epochs, warm-up (ours: 5 %), K, blocks of T_m, alpha
RECIPES = {
    MAIN: (FILES['deit'], FILES['mae'], 'b', 300, 15, 0.3, (0, 4, 8), 1.0),
    'hybrid_distill/hybrid_vit-base-p16_mae-clip_8xb128-300e_in1k':
        (FILES['clip'], FILES['mae'], 'b', 300, 15, 0.3, (0, 4, 8), 1.0),
    'hybrid_distill/hybrid_vit-base-p16_mae-dino_8xb128-300e_in1k':
        (FILES['dino'], FILES['mae'], 'b', 300, 15, 0.3, (0, 4, 8), 1.0),
    'hybrid_distill/hybrid_vit-large-p16_mae-clip_8xb128-40e_in21k':
        ('ViT-L-14.pt', 'mae_pretrain_vit_large.pth', 'l', 40, 2, 0.3, (0, 8, 16), 1.0),
    'hybrid_distill/hybrid-unmasked_vit-base-p16_mae-deit_8xb128-100e_in1k':
        (FILES['deit'], FILES['mae'], 'b', 100, 5, 0.0, None, 1.0),
    'hybrid_distill/hybrid-unmasked_vit-base-p16_mae-clip_8xb128-100e_in1k':
        (FILES['clip'], FILES['mae'], 'b', 100, 5, 0.0, None, 1.0),
    **{
        f'hybrid_distill/distill-{name}_vit-base-p16_8xb128-300e_in1k':
            (FILES[name], None, 'b', 300, 15, 0.0, None, None)
        for name in FILES
    },
}  # fmt: skip
# rate, batch, classes, epochs; layer decay 0.75 and drop path 0.2 as dBOT's
FINETUNING = {
    'in1k/hybrid-ft_vit-base-p16_8xb32-100e_in1k': (3e-4, 256, 1000, 100),
    'in1k/hybrid-ft_vit-large-p16_8xb32-50e_in1k': (3e-4, 256, 1000, 50),
    'cifar100/hybrid-ft_vit-base-p16_8xb96-1000e_cifar100': (1.125e-5, 768, 100, 1000),
    'cars/hybrid-ft_vit-base-p16_8xb96-1000e_cars': (1.125e-5, 768, 196, 1000),
}
PAPER = {
    **dict(zip(('alpha-0', 'alpha-0.1', 'alpha-0.3', 'alpha-0.5', 'alpha-0.7', 'default'),
               (47.5, 48.2, 49.3, 49.3, 49.5, 50.0), strict=True)),
    **dict(zip((f'clip-alpha-{alpha}' for alpha in ('0', '0.1', '0.3', '0.5', '0.7', '1')),
               (49.1, 49.9, 49.8, 50.1, 50.2, 50.4), strict=True)),
    'target-msa-output': 49.8, 'target-features': 49.6, 'masking-progressive': 49.9,
}  # fmt: skip


@pytest.mark.parametrize('name', RECIPES)
def test_recipe__has_the_papers_values(name):
    semantic, mim, arch, epochs, warm_up, drop, at, alpha = RECIPES[name]
    cfg = get_config(name)
    check_schedule(cfg, lr=6e-4, batch=1024, epochs=epochs, warm_up=warm_up)
    model = cfg.model
    assert model.backbone.arch == arch
    found = {key: teacher.checkpoint.removeprefix('checkpoints/') for key, teacher in model.teachers.items()}
    assert found == {'semantic': semantic, **({'mim': mim} if mim else {})}
    assert (model.masking.get('drop', 0.0), model.masking.get('at')) == (drop, at)
    feature = model.objectives.feature
    assert (feature.tap, feature.student, feature.head.type, feature.weight if 'weight' in feature else 1.0) == (
        'output', 'output', 'LinearHead', 1.0,
    )  # fmt: skip
    assert feature.loss == dict(type='SmoothL1Loss', beta=2.0)
    assert set(model.objectives) == ({'feature'} if alpha is None else {'feature', 'relation'})
    if alpha is not None:
        relation = model.objectives.relation
        assert relation.tap == relation.student == ('relation:-3', 'relation:-2')  # L−2 and L−1, counted from 1
        assert (relation.weight, relation.loss) == (alpha, dict(type='SmoothL1Loss', beta=2.0))
        assert relation.region == feature.region == 'visible+cls'


@pytest.mark.parametrize('name', FINETUNING)
def test_finetuning__has_the_papers_values(name):
    cfg = get_config(f'hybrid_distill/finetune/{name}')
    lr, batch, classes, epochs = FINETUNING[name]
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(lr)
    assert 8 * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == batch
    assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes == classes
    assert (cfg.optim_wrapper.paramwise_cfg.layer_decay_rate, cfg.model.backbone.drop_path_rate) == (0.75, 0.2)
    assert cfg.param_scheduler[1].end == cfg.train_cfg.max_epochs == epochs
    assert (cfg.param_scheduler[0].end, cfg.optim_wrapper.optimizer.weight_decay) == (5, 0.05)


def test_ablations__have_the_papers_numbers():
    rows = ablations('hybrid_distill')
    assert {name: row['paper'] for name, row in rows.items() if row['paper'] is not None} == PAPER
    assert all('not known to us' in row['source'] or 'not in the paper' in row['source']
               for row in rows.values() if row['paper'] is None)  # fmt: skip


@pytest.mark.parametrize('alpha', ['0', '0.1', '0.3', '0.5', '0.7'])
@pytest.mark.parametrize('teacher', ['', 'clip-'])
def test_ablations__alpha(teacher, alpha):
    """alpha = 0 has no MAE at all, and is as long as the others."""
    cfg = get_ablation('hybrid_distill', f'{teacher}alpha-{alpha}')
    check_schedule(cfg, lr=6e-4, batch=1024, epochs=100, warm_up=5)
    assert ('mim' in cfg.model.teachers) == (alpha != '0') == ('relation' in cfg.model.objectives)
    if alpha != '0':
        assert cfg.model.objectives.relation.weight == float(alpha)


@pytest.mark.parametrize(
    ('row', 'kept'),
    [('default', 196), ('masking-progressive', 67), ('masking-direct', 67), ('masking-random', 67),
     ('masking-progressive-0.1', 143), ('masking-progressive-0.2', 100), ('masking-progressive-0.4', 42),
     ('masking-progressive-0.5', 24)],
)  # fmt: skip
def test_masking__kept_tokens_of_196(row, kept):
    """(1 − K)³ of them: 142.9, 100.4, 67.2, 42.3, 24.5 for K = 10 … 50 %, to the nearest integer (a half to the even)."""
    student = StudentContext(SimpleNamespace(grid=(14, 14)), (0.0,) * 3, (1.0,) * 3)
    masking = build_component(get_ablation('hybrid_distill', row).model.masking, student=student)
    assert masking.num_visible == kept


# --- Data


@pytest.mark.parametrize(
    'name', ['cifar100/hybrid-ft_vit-base-p16_8xb96-1000e_cifar100', 'cars/hybrid-ft_vit-base-p16_8xb96-1000e_cars']
)
@pytest.mark.parametrize('loader', ['train_dataloader', 'val_dataloader', 'test_dataloader'])
def test_finetuning__pipeline_takes_the_data_sets_images(name, loader, tmp_path):
    dataset = get_config(f'hybrid_distill/finetune/{name}')[loader].dataset
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((300, 280)).save(tmp_path / 'car.jpg')
    sample = dict(img=pixels) if dataset.type == 'CIFAR100' else dict(img_path=str(tmp_path / 'car.jpg'))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        assert DATASETS.get(dataset.type) is not None
        packed = Compose(dataset.pipeline)(dict(sample, gt_label=3, sample_idx=0))
    assert packed['inputs'].shape == (3, 224, 224)
    assert packed['data_samples'].gt_label.tolist() == [3]


def test_in21k__is_a_folder_of_class_folders(tmp_path):
    dataset = get_config('hybrid_distill/hybrid_vit-large-p16_mae-clip_8xb128-40e_in21k').train_dataloader.dataset
    assert dataset.data_root == 'data/imagenet21k/train/'
    for index, folder in enumerate(('n1', 'n1', 'n2/n3')):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (40, 50)).save(tmp_path / folder / f'{index}.JPEG')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        found = DATASETS.build({**dataset, 'data_root': str(tmp_path)})
        assert len(found) == 3
        assert found[0]['inputs'].pixels.shape[2] == 3
