# CrossMAE, ViT-H/14, predicting a quarter of all patches: 86.3 top-1.
_base_ = 'crossmae_vit-base-p16_8xb512-800e_in1k.py'

model = dict(
    backbone=dict(arch='h', patch_size=14),
    objectives=dict(pixel=dict(student=['input:0', *[f'block:{i}' for i in range(32)]])))
