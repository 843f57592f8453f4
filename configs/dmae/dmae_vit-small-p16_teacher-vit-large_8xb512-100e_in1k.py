# ViT-S/16 from MAE's ViT-L/16 (80.1 top-1); the decoder is that of ViT-B (our choice).
# Alignment: ★ reference code, both sides L2-normalised.
_base_ = 'dmae_vit-base-p16_teacher-vit-large_8xb512-100e_in1k.py'

model = dict(backbone=dict(arch='s'))
