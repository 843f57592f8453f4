# Hybrid Distill's rate, 3e-4; the paper follows CAE in the rest, we follow
# dBOT's Table A3 and reference code (our choice).
_base_ = '../../../downstream/mmdet/vit-base-p16_cascade-mask-rcnn_1x_coco.py'

model = dict(backbone=dict(init_cfg=dict(checkpoint='work_dirs/hybrid_vit-base-p16_mae-deit_8xb128-300e_in1k/epoch_300.pth')))
optim_wrapper = dict(optimizer=dict(lr=3e-4))
