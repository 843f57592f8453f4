# The baseline of DMAE's ViT-Ti for equal epochs (66.6 top-1); the decoder is that of ViT-B (our choice).
_base_ = 'mae_vit-base-p16_8xb512-100e_in1k.py'

model = dict(backbone=dict(arch='ti'))
