# Gram anchoring on scikit-learn's digits, beside the features of a moving average; the anchor is copied every 500 steps.
_base_ = ['../_base_/datasets/digits_pretrain.py', '../_base_/schedules/digits_100e.py', '../_base_/runtime_digits.py']

model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(type='MaskTokenViT', arch=dict(width=96, depth=4, num_heads=4), img_size=24, patch_size=4),
    masking=dict(type='BlockMasking', ratio=0.4, min_block=3),
    teachers=dict(ema=dict(type='AnchoredTeacher', momentum=0.99, every=500, times=3)),
    objectives=dict(
        feature=dict(
            teacher='ema', tap='output', normalize=dict(type='TokenStandardize', unbiased=False), student='output',
            head=dict(type='LinearHead'), loss=dict(type='SmoothL1Loss', beta=2.0), region='hidden'),
        gram=dict(
            teacher='ema', tap='anchor.output', student='output', loss=dict(type='GramLoss'), region='all',
            weight=2.0)))
