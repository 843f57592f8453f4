# VQ-KD on scikit-learn's digits: 64 codes of 8 channels, one block of width 96. The teacher needs weights: set `checkpoint`
# (and `seed=None`), for example from a run of mae_digits.
_base_ = ['../_base_/datasets/digits_pretrain.py', '../_base_/schedules/digits_100e.py', '../_base_/runtime_digits.py']

model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(
        type='PlainViT', arch=dict(width=96, depth=4, num_heads=4), img_size=24, patch_size=4, position='learned'),
    masking=dict(type='NoMasking'),
    teachers=dict(
        teacher=dict(
            type='ViTTeacher', arch=dict(width=96, depth=4, num_heads=4), patch_size=4, seed=0,
            pixel_mean=[77.9] * 3, pixel_std=[92.8] * 3)),
    objectives=dict(
        feature=dict(
            teacher='teacher', tap='output', student='output',
            head=dict(type='CodebookDecoder', codes=64, code_width=8, depth=1, width=96, num_heads=4),
            loss=dict(type='CosineLoss'), region='all')))
