# ConvNeXt-T from DINOv3 ViT-S/16 with 40 % of the patches hidden, in squares of 32 pixels: a token replaces them after the
# stem, and convolutions then mix it with its surroundings. The recipe is ours. The file starts timm's ConvNeXt-T.
_base_ = 'resnet-18_teacher-dinov3-small_8xb128-100e_in1k.py'

model = dict(
    backbone=dict(mask_at='stem', network=dict(_delete_=True, type='timm.convnext_tiny', drop_path_rate=0.1)),
    masking=dict(_delete_=True, type='RandomMasking', ratio=0.4, unit=2))
