# CrossMAE, ViT-L/16, predicting all hidden patches: 85.4 top-1.
_base_ = 'crossmae-all_vit-base-p16_8xb512-800e_in1k.py'

model = dict(
    backbone=dict(arch='l'),
    objectives=dict(pixel=dict(student=['input:0', *[f'block:{i}' for i in range(24)]])))
