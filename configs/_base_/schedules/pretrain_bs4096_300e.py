# TinyMIM's schedule: MAE's optimiser (rate 1.5e-4 per 256 images, batch 4096) for 300 epochs, 15 of warm-up, cosine to 0.
_base_ = 'pretrain_bs4096_800e.py'

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=15, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=15, end=300, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=300)
