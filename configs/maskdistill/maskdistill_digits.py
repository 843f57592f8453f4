# MaskDistill on scikit-learn's digits. Differs from maskdistill_vit-base-p16 in sizes, rate and betas (those of all digits
# configs), in minimum block area, 3 of 36 patches instead of 16 of 196, and in that cls has weight decay.
#
# The teacher needs weights: run `tools/train.py configs/mae/mae_digits.py`, then pass `--cfg-options
# model.teachers.teacher.checkpoint=work_dirs/mae_digits/epoch_100.pth model.teachers.teacher.seed=None`.
_base_ = ['../_base_/datasets/digits_pretrain.py', '../_base_/schedules/digits_100e.py', '../_base_/runtime_digits.py']

model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(
        type='MaskTokenViT', arch=dict(width=96, depth=4, num_heads=4), img_size=24, patch_size=4, position='none',
        relative_position='shared', layer_scale=0.1),
    masking=dict(type='BlockMasking', ratio=0.4, min_block=3),
    teachers=dict(
        teacher=dict(
            type='ViTTeacher', arch=dict(width=96, depth=4, num_heads=4), patch_size=4, seed=0,
            pixel_mean=[77.9] * 3, pixel_std=[92.8] * 3)),
    objectives=dict(
        feature=dict(
            teacher='teacher', tap='output', normalize=dict(type='TokenStandardize', unbiased=False, eps=1e-5),
            student='output', head=dict(type='LinearHead'), loss=dict(type='SmoothL1Loss', beta=1.0), region='hidden')))
optim_wrapper = dict(clip_grad=dict(max_norm=3.0))
