# A small ResNet learns the tokens of a frozen ViT on scikit-learn's digits, without masking: its last map of 3 × 3 is
# resampled to the teacher's 6 × 6 patches, and its mean learns cls. The recipe is ours.
#
# The teacher needs weights: run `tools/train.py configs/dbot/dbot_digits.py`, then pass `--cfg-options
# model.teachers.teacher.checkpoint=work_dirs/dbot_digits/stage_2.pth model.teachers.teacher.seed=None`.
_base_ = ['../_base_/datasets/digits_pretrain.py', '../_base_/schedules/digits_100e.py', '../_base_/runtime_digits.py']

model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(
        type='BackboneStudent', img_size=24, patch_size=4,
        network=dict(
            type='mmpretrain.ResNet_CIFAR', depth=18, stem_channels=16, base_channels=16, strides=(2, 2, 2, 1))),
    masking=dict(type='NoMasking'),
    teachers=dict(
        teacher=dict(
            type='ViTTeacher', arch=dict(width=96, depth=4, num_heads=4), patch_size=4, seed=0,
            pixel_mean=[77.9] * 3, pixel_std=[92.8] * 3)),
    objectives=dict(
        feature=dict(
            teacher='teacher', tap='output', normalize=dict(type='TokenStandardize', unbiased=False),
            student='output', head=dict(type='LinearHead'), loss=dict(type='SmoothL1Loss', beta=1.0),
            region='all+cls')))
