# Hybrid Distill, ViT-B/16 from MAE and DINO, K = 30 % (inferred): 49.6 AP-box, 43.5 AP-mask (epochs unknown).
_base_ = 'hybrid_vit-base-p16_mae-deit_8xb128-300e_in1k.py'

model = dict(teachers=dict(semantic=dict(checkpoint='checkpoints/dino_vitbase16_pretrain.pth')))
