"""docs/unified_view.md comes from the configs, and says of all 24 methods whether there is one."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

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


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row.method)
def test_row__config_says_what_the_paper_says_or_the_reason_is_given(row):
    if row.config is None:
        assert len(row.reason) > 30
        return
    teacher, _, head, norm, loss = SCRIPT['describe'](row.config)
    assert TEACHERS[row.paper[0]] in teacher
    assert head == OTHERWISE.get((row.method, 'head'), HEADS[row.paper[2]])
    assert norm == NORMS[row.paper[3]]
    assert OTHERWISE.get((row.method, 'loss'), LOSSES[row.paper[4]]) in loss


def test_table__says_of_at_least_21_methods_what_their_config_is():
    assert sum(row.config is not None for row in SCRIPT['ROWS']) >= 22  # MaskDistill's own is one of them
