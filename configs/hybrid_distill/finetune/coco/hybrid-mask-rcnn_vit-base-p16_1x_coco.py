# Hybrid Distill's rate for ViT-B, 3e-4; the base recipe states which settings are our choice.
_base_ = '../../../downstream/mmdet/vit-base-p16_mask-rcnn_1x_coco.py'

model = dict(backbone=dict(init_cfg=dict(checkpoint='work_dirs/hybrid_vit-base-p16_mae-deit_8xb128-300e_in1k/epoch_300.pth')))
