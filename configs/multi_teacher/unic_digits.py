# UNIC with two teachers on scikit-learn's digits. They need weights: set `checkpoint` (and `seed=None`) of both, for
# example from runs of mae_digits and dbot_digits.
_base_ = ['../_base_/datasets/digits_pretrain.py', '../_base_/schedules/digits_100e.py', '../_base_/runtime_digits.py']

find_unused_parameters = True  # the student's final norm
teacher = dict(
    type='ViTTeacher', arch=dict(width=96, depth=4, num_heads=4), patch_size=4, pixel_mean=[77.9] * 3, pixel_std=[92.8] * 3)
part = dict(
    tap='output', student=['block:0', 'block:1', 'block:2', 'block:3'],
    head=dict(type='LadderHead', width=96, last_width=384),
    normalize=dict(type='RunningStandardize', share=dict(type='CosineRamp', start=1.0, end=0.001)),
    loss=dict(type='CosineSmoothL1Loss', cosine=0.5, smooth_l1=0.5, beta=1.0), weight=0.5)
model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(type='PlainViT', arch=dict(width=96, depth=4, num_heads=4), img_size=24, patch_size=4),
    masking=dict(type='NoMasking'),
    balance=dict(type='TeacherDropping', drop=0.5),
    teachers=dict(mae=dict(seed=0, **teacher), dbot=dict(seed=1, **teacher)),
    objectives=dict(
        mae_cls=dict(teacher='mae', region='cls', **part),
        mae=dict(teacher='mae', region='all', **part),
        dbot_cls=dict(teacher='dbot', region='cls', **part),
        dbot=dict(teacher='dbot', region='all', **part)))
