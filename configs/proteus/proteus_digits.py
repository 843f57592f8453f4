# Proteus on scikit-learn's digits; weights are those of 36 patches. The teacher needs weights: set `checkpoint` (and
# `seed=None`), for example from a run of dbot_digits.
_base_ = ['../_base_/datasets/digits_pretrain.py', '../_base_/schedules/digits_100e.py', '../_base_/runtime_digits.py']

token = dict(
    teacher='frozen', tap='output', student='output', head=dict(type='LinearHead', norm=True), loss=dict(type='MSELoss'))
model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(type='MaskTokenViT', arch=dict(width=96, depth=4, num_heads=4), img_size=24, patch_size=4),
    masking=dict(type='IntactAndMasked', ratio=0.5, share=0.5),
    teachers=dict(
        frozen=dict(
            type='ViTTeacher', arch=dict(width=96, depth=4, num_heads=4), patch_size=4, pixel_mean=[77.9] * 3,
            pixel_std=[92.8] * 3, seed=0)),
    objectives=dict(
        cls=dict(region='intact_cls', weight=1 + 1 / 37, **token),
        feature=dict(region='intact', weight=36 / 37, **token),
        patch=dict(region='hidden', **token)))
