# CAE v2 on scikit-learn's digits: half of the patches is hidden in blocks. The teacher needs weights: set `checkpoint` (and
# `seed=None`), for example from a run of mae_digits.
_base_ = ['../_base_/datasets/digits_pretrain.py', '../_base_/schedules/digits_100e.py', '../_base_/runtime_digits.py']

model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(
        type='VisibleViT', arch=dict(width=96, depth=4, num_heads=4), img_size=24, patch_size=4, layer_scale=0.1),
    masking=dict(type='ExactBlockMasking', ratio=0.5, min_block=3),
    teachers=dict(
        frozen=dict(
            type='ViTTeacher', arch=dict(width=96, depth=4, num_heads=4), patch_size=4, pixel_mean=[77.9] * 3,
            pixel_std=[92.8] * 3, seed=0)),
    objectives=dict(
        feature=dict(
            teacher='frozen', tap='output', student='output',
            head=dict(type='ContextRegressor', depth=2, num_heads=4, layer_scale=0.1),
            loss=dict(type='CosineLoss'), region='all+cls')))
