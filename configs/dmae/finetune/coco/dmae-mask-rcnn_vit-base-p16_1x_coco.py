# DMAE with Hybrid Distill's recipe (our choice).
_base_ = '../../../downstream/mmdet/vit-base-p16_mask-rcnn_1x_coco.py'

model = dict(
    backbone=dict(
        init_cfg=dict(checkpoint='work_dirs/dmae_vit-base-p16_teacher-vit-large_8xb512-100e_in1k/epoch_100.pth')))
