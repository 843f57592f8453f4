# Swin-T from DINOv3 ViT-S/16, without masking: the last map of 7 × 7, resampled to the teacher's 14 × 14 patches,
# learns its tokens, and the map's mean learns cls. The recipe is ours. The file starts mmseg's SwinTransformer, whose
# names differ from mmpretrain's; mmdet's has the same. Norms of stages that nothing reads keep their initial values.
_base_ = 'resnet-18_teacher-dinov3-small_8xb128-100e_in1k.py'

model = dict(backbone=dict(network=dict(_delete_=True, type='mmseg.SwinTransformer')))
