# ViT-H/14 from CLIP-L/14: 88.3 top-1, 58.8 mIoU. Both have 16 × 16 tokens at 224 px (inferred: the paper's 196 px are
# for students of patch size 16). 300 epochs (Table 3).
_base_ = 'maskdistill_vit-base-p16_teacher-clip-large_8xb256-300e_in1k.py'

model = dict(
    backbone=dict(arch='h', patch_size=14, drop_path_rate=0.25, layer_scale=1e-5), teachers=dict(teacher=dict(img_size=224)))
