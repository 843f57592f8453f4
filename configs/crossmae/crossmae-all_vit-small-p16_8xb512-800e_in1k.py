# CrossMAE, ViT-S/16, predicting all hidden patches: 79.3 top-1. The decoder has width 256 and 8 heads (reference code).
_base_ = 'crossmae-all_vit-base-p16_8xb512-800e_in1k.py'

model = dict(backbone=dict(arch='s'), objectives=dict(pixel=dict(head=dict(width=256, num_heads=8))))
