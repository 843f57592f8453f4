# Proteus, ViT-Ti/14 from DINOv2's ViT-S: 75.2 linear, 40.7 mIoU.
_base_ = 'proteus_vit-base-p14_teacher-dinov2-large_8xb64-300e_in1k.py'

model = dict(
    backbone=dict(arch='ti'),
    teachers=dict(dinov2=dict(arch='s', checkpoint='checkpoints/dinov2_vits14_pretrain.pth')))
