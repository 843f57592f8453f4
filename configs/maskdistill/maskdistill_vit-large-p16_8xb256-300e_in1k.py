# ViT-L/16 from CLIP-B/16, 300 epochs: 86.8 top-1, the comparison with plain distillation.
_base_ = 'maskdistill_vit-base-p16_8xb256-300e_in1k.py'

model = dict(backbone=dict(arch='l', drop_path_rate=0.2, layer_scale=1e-5))
