# ViT-H/14 teaches a new ViT-L/16 (86.8 top-1, 56.1 AP-box, 55.2 mIoU).
_base_ = 'dbot_vit-base-p16_teacher-vit-huge_8xb512-1x800e_in1k.py'

model = dict(backbone=dict(arch='l'))
optim_wrapper = dict(clip_grad=None)
