# dBOT's Table A3 and reference code: rate 1e-4, layer decay 0.75, drop path 0.2, absolute positions. From the third stage.
_base_ = '../../../downstream/mmdet/vit-large-p16_cascade-mask-rcnn_1x_coco.py'

model = dict(backbone=dict(init_cfg=dict(checkpoint='work_dirs/dbot_vit-large-p16_8xb512-3x800e_in1k/stage_3.pth')))
