# MAE's fine-tuning of ViT-B: rate 5e-4 per 256 images (2e-3 at 1024), layer decay 0.65, drop path 0.1. Using it for
# this size is our choice.
_base_ = '../../../downstream/mmpretrain/vit-base-p16_ft_8xb128-100e_in1k.py'

model = dict(
    backbone=dict(
        arch='s', init_cfg=dict(
            checkpoint='work_dirs/dmae_vit-small-p16_teacher-vit-large_8xb512-100e_in1k/epoch_100.pth')),
    head=dict(in_channels=384))
