# Settings of dBOT's Table A4: 16000 steps, cosine, drop path 0.1; sweeps of rates {0.3, 0.5, 0.8, 1, 3}e-4 and layer
# decays {0.65, 0.75, 0.85, 0.95}, of which we use the reference code's values. (16000 may be a misprint of 160k.)
_base_ = 'dbot-upernet_vit-base-p16_160k_ade20k-512.py'

model = dict(backbone=dict(drop_path_rate=0.1))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False, begin=1500, end=16000),
]
train_cfg = dict(max_iters=16000, val_interval=1600)
default_hooks = dict(checkpoint=dict(interval=1600))
