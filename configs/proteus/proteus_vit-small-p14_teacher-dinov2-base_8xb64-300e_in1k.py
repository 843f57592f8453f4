# Proteus, ViT-S/14 from DINOv2's ViT-B: 81.8 linear, 50.0 mIoU.
_base_ = 'proteus_vit-base-p14_teacher-dinov2-large_8xb64-300e_in1k.py'

model = dict(
    backbone=dict(arch='s'),
    teachers=dict(dinov2=dict(arch='b', checkpoint='checkpoints/dinov2_vitb14_pretrain.pth')))
