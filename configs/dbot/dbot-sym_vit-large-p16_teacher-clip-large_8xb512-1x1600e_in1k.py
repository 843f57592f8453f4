# dBOT, symmetric, ViT-L/16 from CLIP-L/14 at 196 px, so that both have 14 × 14 tokens (87.8 top-1, 56.8 AP-box, 56.2
# mIoU; CLIP-L: Table C7).
_base_ = 'dbot-sym_vit-base-p16_teacher-clip-base_8xb512-1x1600e_in1k.py'

model = dict(
    backbone=dict(arch='l'),
    teachers=dict(teacher=dict(arch='l', patch_size=14, img_size=196, checkpoint='checkpoints/ViT-L-14.pt')))
