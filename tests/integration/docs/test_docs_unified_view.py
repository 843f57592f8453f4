"""docs/unified_view.md comes from the configs, and every row of the paper's table has one that says what the row says."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmpretrain.models  # noqa: F401  students and tokenizers of some rows
import pytest
import timm

import mkd_plugin.models  # noqa: F401
from mkd_plugin.registry import MODELS
from mkd_plugin.utils.configs import get_config

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = runpy.run_path(str(ROOT / 'tools' / 'docs' / 'unified_view.py'))
ROWS = [*SCRIPT['ROWS'], *SCRIPT['BESIDE']]
# what our config must say for a word of the paper's table
TEACHERS = {
    'pixel': 'PixelTeacher', 'HOG': 'HOGGenerator', 'dVAE tokens': 'DALL-E', 'VQ-KD tokens': 'VQKD', 'DINO': 'dino',
    'CLIP': 'CLIPTeacher', 'EVA-CLIP': 'CLIPTeacher', 'MoCo v3': 'vit-b-300ep', 'EMA': 'MomentumTeacher',
    'DINOv2': 'dinov2_vitl14',
    'EMA, averaged layers': 'LayerAverageTeacher', 'EMA + an old copy': 'AnchoredTeacher', 'MAE': 'mae_pretrain',
    'EMA + pixel': 'MomentumTeacher, output + PixelTeacher', 'previous student': 'BootstrappedTeacher',
    'pixel + frequency': 'PixelTeacher, output + SpectrumTeacher', 'dVAE': 'DALL-E', 'VQGAN': 'PerceptualVQGAN',
}  # fmt: skip
# kinds of network, and of masking; None: any that hides patches. The table does not say whether a ViT has mask tokens.
VIT = ('VisibleViT', 'MaskTokenViT')
STUDENTS: dict[str, tuple[tuple[str, ...], str | None]] = {
    'ViT': (VIT, None),
    'ViT, no mask': (('VisibleViT', 'PlainViT'), 'NoMasking'),
    'ViT, also without mask': (VIT, 'IntactAndMasked'),
    'Swin': (('mmpretrain.SwinTransformer',), None),
    'HiViT': (('mmpretrain.MAEHiViT',), None),
    'hybrid ViT': (('timm.vit_base_r50_s16_224',), None),  # ConvMAE's own is in no package
    'ViT-g': (VIT, None),  # EVA, beside the table: our config has a ViT-B
}
HEADS = {
    'FC': 'LinearHead',
    'decoder': 'TransformerDecoder',
    'decoders': 'TransformerDecoder',
    'predictor': 'TargetPredictor',
    'convolutions; none for cls': 'ConvDecoder + none',
    'FC; none': 'LinearHead + none',
    'cross-attention': 'CrossAttentionDecoder',
    'cross-attention decoder': 'CrossAttentionDecoder',
    'cross-attention regressor': 'ContextRegressor',
    'regrouped heads': 'RegroupedRelations',
}
NORMS = {
    '-': 'none', 'l2': 'L2Normalize', 'LN': 'TokenStandardize', 'per-patch LN': 'TokenStandardize',
    'LN (no affine)': 'TokenStandardize', 'BN': 'BatchStandardize',
    'LN; none': 'TokenStandardize + none',
}  # fmt: skip
LOSSES = {
    '-': 'MSELoss', 'L1': 'L1Loss', 'L2': 'MSELoss', 'smooth L1': 'SmoothL1Loss', 'cosine': 'CosineLoss',
    'InfoNCE': 'TokenInfoNCE', 'cross entropy': 'TokenCrossEntropy', 'CE': 'TokenCrossEntropy',
    'smooth L1 + Gram': 'GramLoss', 'KL of relations': 'RelationKL', 'InfoNCE + CE': 'ContrastedCrossEntropy',
    'UniGrad': 'UniGradLoss',
}  # fmt: skip
# words that the table uses for different things
OTHERWISE = {('CAE', 'head'): 'ContextRegressor', ('MSN', 'loss'): 'PrototypeCrossEntropy'}


def test_page__is_what_the_script_writes():
    assert (ROOT / 'docs' / 'unified_view.md').read_text() == SCRIPT['page'](), 'run: python tools/docs/unified_view.py'


def test_table__has_the_24_methods_beside_maskdistill():
    assert len({row.method for row in SCRIPT['ROWS']}) == 25


def test_table__has_a_config_for_every_row():
    assert [row.method for row in ROWS if row.config is None] == []


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row.method)
def test_row__config_says_what_the_paper_says(row):
    teacher, student, head, norm, loss = SCRIPT['describe'](row.config)
    assert TEACHERS[row.paper[0]] in teacher
    networks, wanted = STUDENTS[row.paper[1]]
    network, masking = student.split(', ')
    assert network in networks
    assert masking == wanted if wanted else masking not in ('NoMasking', 'IntactAndMasked')
    assert head == OTHERWISE.get((row.method, 'head'), HEADS[row.paper[2]])
    assert norm == NORMS[row.paper[3]]
    assert OTHERWISE.get((row.method, 'loss'), LOSSES[row.paper[4]]) in loss


def components(row: Any) -> Iterator[str]:
    """Types of the student's network, and of every teacher, normalisation, head and loss."""
    model = get_config(row.config).model
    yield model.backbone.get('network', model.backbone).type
    for teacher in model.teachers.values():
        yield teacher.get('generator', teacher).type
    for term in model.objectives.values():
        yield from (part.type for part in (term.get('normalize'), term.get('head'), term.loss) if part)


def in_a_package(kind: str) -> bool:
    return timm.is_model(kind.removeprefix('timm.')) if kind.startswith('timm.') else MODELS.get(kind) is not None


def test_rows__have_their_components_in_a_package_but_for_pecos_tokenizer():
    """configs/maskdistill/README.md names the exception."""
    missing = {(row.method, kind) for row in ROWS for kind in components(row) if not in_a_package(kind)}
    assert missing == {('PeCo', 'PerceptualVQGAN')}
