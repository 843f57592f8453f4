# TinyMIM on scikit-learn's digits: relations of block 3 of 4 of a teacher with 6 heads, for a student with 4. One view of
# each image: the pipeline of the digits has no jitter. The teacher needs weights: set `checkpoint` (and `seed=None`), for
# example from a run of mae_digits, and the number of heads of that run.
_base_ = ['../_base_/datasets/digits_pretrain.py', '../_base_/schedules/digits_100e.py', '../_base_/runtime_digits.py']

relation = dict(
    teacher='mae', head=dict(type='RegroupedRelations'), loss=dict(type='RelationKL'), region='all+cls', weight=1.0)
model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(type='VisibleViT', arch=dict(width=96, depth=4, num_heads=4), img_size=24, patch_size=4),
    masking=dict(type='NoMasking'),
    teachers=dict(
        mae=dict(
            type='ViTTeacher', arch=dict(width=96, depth=4, num_heads=6), patch_size=4, pixel_mean=[77.9] * 3,
            pixel_std=[92.8] * 3, seed=0)),
    objectives=dict(
        qk=dict(tap='logit:2', student='logit:-1', **relation),
        vv=dict(tap='value:2', student='value:-1', **relation)))
find_unused_parameters = True
