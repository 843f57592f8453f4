# data2vec 2.0 on scikit-learn's digits: four masks per image, each showing 9 of 36 patches. Weights are those of ViT-B, for
# width 96.
_base_ = ['../_base_/datasets/digits_pretrain.py', '../_base_/schedules/digits_100e.py', '../_base_/runtime_digits.py']

model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(type='VisibleViT', arch=dict(width=96, depth=4, num_heads=4), img_size=24, patch_size=4),
    masking=dict(
        type='SeveralMasks', count=4, masking=dict(type='InverseBlockMasking', ratio=0.75, blocks=1, side=3)),
    teachers=dict(
        ema=dict(
            type='LayerAverageTeacher', last=2,
            momentum=dict(type='LinearRamp', start=0.99, end=0.999, steps=1000))),
    objectives=dict(
        feature=dict(
            teacher='ema', tap='target', student='output',
            head=dict(type='ConvDecoder', depth=2, width=32, groups=4),
            loss=dict(type='MSELoss'), region='hidden', weight=96**0.5),
        cls=dict(
            teacher='ema', tap='target', student='output', loss=dict(type='MSELoss'), region='cls',
            weight=0.04 * 96**0.5)))
