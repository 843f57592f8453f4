# ViT-L/16 from CLIP-L/14 at 196 px: 87.6 top-1, 57.9 mIoU. 300 epochs (Table 3).
_base_ = 'maskdistill_vit-base-p16_teacher-clip-large_8xb256-300e_in1k.py'

model = dict(backbone=dict(arch='l', drop_path_rate=0.2, layer_scale=1e-5))
