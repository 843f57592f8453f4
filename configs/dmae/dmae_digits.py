# DMAE on scikit-learn's digits: MAE, and alignment of block ¾ · depth with the teacher's. The teacher sees the student's
# visible patches only and runs up to the aligned block. Alignment follows the reference code ★: both sides
# L2-normalised, then L1 (paper: raw features; remove `normalize` and `normalize_prediction`). As in the reference
# script, pixels are not normalised.
#
# The teacher needs weights: run `tools/train.py configs/mae/mae_digits.py`, then pass `--cfg-options
# model.teachers.mae.checkpoint=work_dirs/mae_digits/epoch_100.pth model.teachers.mae.seed=None`.
_base_ = ['../mae/mae_digits.py']

model = dict(
    teachers=dict(
        mae=dict(
            type='ViTTeacher', arch=dict(width=96, depth=4, num_heads=4), patch_size=4, seed=0, sees='visible',
            pixel_mean=[77.9] * 3, pixel_std=[92.8] * 3)),
    objectives=dict(
        pixel=dict(normalize=None),
        feature=dict(
            teacher='mae', tap='block:2', normalize=dict(type='L2Normalize'), normalize_prediction=True,
            student='block:2', head=dict(type='ProjectorHead', num_layers=2),
            loss=dict(type='L1Loss'), region='visible+cls', weight=1.0)))
