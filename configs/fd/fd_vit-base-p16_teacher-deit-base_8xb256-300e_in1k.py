# FD of DeiT's ViT-B/16.
_base_ = 'fd_vit-base-p16_teacher-dino-base_8xb256-300e_in1k.py'

model = dict(teachers=dict(teacher=dict(checkpoint='checkpoints/deit_base_patch16_224-b5f2ef4d.pth')))
