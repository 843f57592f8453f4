# The baseline of DMAE's ViT-S for equal epochs (77.4 top-1); the decoder is that of ViT-B (our choice).
_base_ = 'mae_vit-base-p16_8xb512-100e_in1k.py'

model = dict(backbone=dict(arch='s'))
