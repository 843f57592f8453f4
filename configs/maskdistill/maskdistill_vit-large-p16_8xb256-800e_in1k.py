# ViT-L/16 from CLIP-B/16, 800 epochs: 87.1 top-1, 56.5 mIoU.
_base_ = 'maskdistill_vit-base-p16_8xb256-800e_in1k.py'

model = dict(backbone=dict(arch='l', drop_path_rate=0.2, layer_scale=1e-5))
