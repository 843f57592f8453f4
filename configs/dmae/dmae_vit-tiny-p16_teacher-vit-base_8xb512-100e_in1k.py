# ViT-Ti/16 from MAE's ViT-B/16 (70.0 top-1). Alignment: ★ reference code, both sides L2-normalised.
_base_ = 'dmae_vit-small-p16_teacher-vit-base_8xb512-100e_in1k.py'

model = dict(backbone=dict(arch='ti'))
