# Values of DMAE's reference script that differ from MAE's fine-tuning: layer decay 0.75, drop path 0.15, warm-up 20.
# Its base rate of 5e-4 per 256 images is MAE's too.
_base_ = 'dmae-ft_vit-base-p16_8xb128-100e_in1k.py'

model = dict(backbone=dict(drop_path_rate=0.15))
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.75))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    # a ratio, so that layer decay also scales the minimum rate of 1e-6
    dict(
        type='CosineAnnealingLR', eta_min_ratio=1e-6 / 2e-3, by_epoch=True, begin=20, end=100, convert_to_iter_based=True),
]
