# dBOT, symmetric, ViT-H/14 from CLIP-L/14, both at 224 px with 16 × 16 tokens (88.5 top-1, 89.1 at 448 px; CLIP-L:
# Table C7). The paper hides at most 40 % (102 of 256 patches), the reference command 78 of 256: see
# the ablation row symmetric-huge-78-hidden.
_base_ = 'dbot-sym_vit-large-p16_teacher-clip-large_8xb512-1x1600e_in1k.py'

model = dict(backbone=dict(arch='h', patch_size=14), teachers=dict(teacher=dict(img_size=224)))
