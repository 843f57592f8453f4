# CAE v2, ViT-S/16 with 12 heads: 49 of 196 patches are hidden, and one block regresses them (the reference script).
_base_ = 'caev2_vit-base-p16_8xb256-300e_in1k.py'

model = dict(
    backbone=dict(arch=dict(_delete_=True, width=384, depth=12, num_heads=12)),
    masking=dict(ratio=0.25),
    objectives=dict(feature=dict(head=dict(depth=1))))
