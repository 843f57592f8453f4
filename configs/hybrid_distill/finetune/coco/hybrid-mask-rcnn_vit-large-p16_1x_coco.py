# Hybrid Distill's rate for ViT-L, 2e-4; the base recipe states which settings are our choice.
_base_ = '../../../downstream/mmdet/vit-large-p16_mask-rcnn_1x_coco.py'

model = dict(backbone=dict(init_cfg=dict(checkpoint='work_dirs/hybrid_vit-large-p16_mae-clip_8xb128-40e_in21k/epoch_40.pth')))
