# As for ViT-B, with features after blocks 8, 12, 16 and 24.
_base_ = 'vit-base-p16_cascade-mask-rcnn_1x_coco.py'

pyramid, fpn = _base_.model.neck
model = dict(
    backbone=dict(arch='l', out_indices=(7, 11, 15, 23)),
    neck=[dict(pyramid, in_channels=1024), dict(fpn, in_channels=[1024] * 4)])
