# CrossMAE on scikit-learn's digits: a quarter of all patches is predicted, from the embeddings and all four blocks.
_base_ = ['../_base_/datasets/digits_pretrain.py', '../_base_/schedules/digits_100e.py', '../_base_/runtime_digits.py']

model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(type='VisibleViT', arch=dict(width=96, depth=4, num_heads=4), img_size=24, patch_size=4),
    masking=dict(type='SampledMasking', ratio=0.75, predicted=0.25),
    teachers=dict(pixel=dict(type='PixelTeacher')),
    objectives=dict(
        pixel=dict(
            teacher='pixel', tap='output', normalize=dict(type='TokenStandardize', unbiased=True),
            student=['input:0', 'block:0', 'block:1', 'block:2', 'block:3'],
            head=dict(type='CrossAttentionDecoder', depth=2, width=64, num_heads=4),
            loss=dict(type='MSELoss'), region='sample')))
find_unused_parameters = True
