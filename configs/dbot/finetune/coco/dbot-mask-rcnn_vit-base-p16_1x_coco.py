# dBOT with Hybrid Distill's Mask R-CNN recipe. From the third stage.
_base_ = '../../../downstream/mmdet/vit-base-p16_mask-rcnn_1x_coco.py'

model = dict(backbone=dict(init_cfg=dict(checkpoint='work_dirs/dbot_vit-base-p16_8xb512-3x800e_in1k/stage_3.pth')))
