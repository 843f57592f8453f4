# Hybrid Distill on scikit-learn's digits: features of one teacher, and token relations of another, which also drops the
# tokens most similar to their mean. Our choices where the paper gives no details: relations per head, unscaled, with
# cls; dBOT's standardisation and beta 2.0 for the features; one linear head on the student.
#
# The teachers need weights: set `checkpoint` (and `seed=None`) of both, for example from runs of mae_digits and
# dbot_digits.
_base_ = ['../_base_/datasets/digits_pretrain.py', '../_base_/schedules/digits_100e.py', '../_base_/runtime_digits.py']

teacher = dict(
    type='ViTTeacher', arch=dict(width=96, depth=4, num_heads=4), patch_size=4, pixel_mean=[77.9] * 3, pixel_std=[92.8] * 3)
relations = ('relation:-3', 'relation:-2')  # layers L−1 and L−2 of the paper, counted from 1
model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(type='VisibleViT', arch=dict(width=96, depth=4, num_heads=4), img_size=24, patch_size=4),
    masking=dict(type='RedundancyMasking', teacher='mim', drop=0.3, at=(0, 1, 2)),
    teachers=dict(mim=dict(seed=0, **teacher), semantic=dict(seed=1, **teacher)),
    objectives=dict(
        feature=dict(
            teacher='semantic', tap='output', normalize=dict(type='TokenStandardize', unbiased=True),
            student='output', head=dict(type='LinearHead'),
            loss=dict(type='SmoothL1Loss', beta=2.0), region='visible+cls'),
        relation=dict(
            teacher='mim', tap=relations, student=relations,
            loss=dict(type='SmoothL1Loss', beta=2.0), region='visible+cls', weight=1.0)))
