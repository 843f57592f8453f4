# ViT-S/16 from MAE's ViT-B/16, 9th block from 9th of 12 (79.3 top-1). Alignment: ★ reference code, both sides L2-normalised.
_base_ = 'dmae_vit-small-p16_teacher-vit-large_8xb512-100e_in1k.py'

model = dict(
    teachers=dict(mae=dict(arch='b', checkpoint='checkpoints/mae_pretrain_vit_base.pth')),
    objectives=dict(feature=dict(tap='block:8')))
