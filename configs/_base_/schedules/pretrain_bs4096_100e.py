# DMAE's pre-training: MAE's schedule at 100 epochs with 20 of warm-up; base rate 1.5e-4 per 256 images, cosine to 0.
_base_ = 'pretrain_bs4096_800e.py'

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=20, end=100, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=100)
