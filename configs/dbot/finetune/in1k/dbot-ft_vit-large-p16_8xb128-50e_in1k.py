# dBOT's Table A2: layer decay 0.75; rate 1.2e-3 at batch 1024, the default of the sweep {0.8, 1.2, 1.6, 2}e-3.
_base_ = '../../../downstream/mmpretrain/vit-large-p16_ft_8xb128-50e_in1k.py'

model = dict(
    backbone=dict(drop_path_rate=0.2, init_cfg=dict(checkpoint='work_dirs/dbot_vit-large-p16_8xb512-2x800e_in1k/stage_2.pth')),
    head=dict(init_cfg=[dict(type='TruncNormal', layer='Linear', std=0.01)]))
optim_wrapper = dict(optimizer=dict(lr=1.2e-3), paramwise_cfg=dict(layer_decay_rate=0.75))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    # a ratio, so that layer decay also scales the minimum rate of 1e-6
    dict(
        type='CosineAnnealingLR', eta_min_ratio=1e-6 / 1.2e-3, by_epoch=True, begin=5, end=50, convert_to_iter_based=True),
]
