# Baseline Distill-DINO: features of DINO only, no masking. We do not know its figures.
_base_ = 'distill-deit_vit-base-p16_8xb128-300e_in1k.py'

model = dict(teachers=dict(semantic=dict(checkpoint='checkpoints/dino_vitbase16_pretrain.pth')))
