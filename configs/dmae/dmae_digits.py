# DMAE on the embedded digits: MAE, and alignment of block ¾ · depth with the teacher's. The teacher sees the student's
# visible tokens only and runs no further than the aligned block. Alignment follows the reference code ★: both sides
# L2-normalised, then L1 (the paper: raw features; leave out `normalize` and `normalize_prediction`). Not normalising
# pixels follows the reference script.
#
# A teacher needs weights: `tools/train.py configs/mae/mae_digits.py`, then
# `--cfg-options model.teachers.mae.checkpoint=work_dirs/mae_digits/epoch_100.pth model.teachers.mae.seed=None`.
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
