# I-JEPA on scikit-learn's digits: four blocks of 2 × 3 or so of 36 patches are predicted from the rest of a 5 × 5 block.
_base_ = ['../_base_/datasets/digits_pretrain.py', '../_base_/schedules/digits_100e.py', '../_base_/runtime_digits.py']

model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(type='VisibleViT', arch=dict(width=96, depth=4, num_heads=4), img_size=24, patch_size=4,
        cls_token=False),
    masking=dict(type='MultiBlockMasking', min_visible=5),
    teachers=dict(
        ema=dict(type='MomentumTeacher', momentum=dict(type='LinearRamp', start=0.996, end=1.0))),
    objectives=dict(
        feature=dict(
            teacher='ema', tap='output', normalize=dict(type='TokenStandardize', unbiased=False, eps=1e-5),
            student='output',
            head=dict(type='TargetPredictor', blocks=4, depth=2, width=64, num_heads=4),
            loss=dict(type='SmoothL1Loss', beta=1.0), region='targets')))
