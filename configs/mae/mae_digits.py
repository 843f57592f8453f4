# MAE on scikit-learn's digits: dBOT's student and decoder, with pixels as the teacher.
_base_ = ['../_base_/datasets/digits_pretrain.py', '../_base_/schedules/digits_100e.py', '../_base_/runtime_digits.py']

model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(type='VisibleViT', arch=dict(width=96, depth=4, num_heads=4), img_size=24, patch_size=4),
    masking=dict(type='RandomMasking', ratio=0.75),
    teachers=dict(pixel=dict(type='PixelTeacher')),
    objectives=dict(
        pixel=dict(
            teacher='pixel', tap='output', normalize=dict(type='TokenStandardize', unbiased=True),
            student='output', head=dict(type='TransformerDecoder', depth=2, width=64, num_heads=4),
            loss=dict(type='MSELoss'), region='hidden')))
