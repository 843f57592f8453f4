# Values of dBOT's reference script that differ from Table A2: drop path 0.25, gradient clip 1.0.
_base_ = '../../../downstream/mmpretrain/vit-large-p16_ft_8xb128-50e_in1k.py'

model = dict(
    backbone=dict(drop_path_rate=0.25, init_cfg=dict(checkpoint='work_dirs/dbot_vit-large-p16_8xb512-2x800e_in1k/stage_2.pth')),
    head=dict(init_cfg=[dict(type='TruncNormal', layer='Linear', std=0.01)]))
optim_wrapper = dict(optimizer=dict(lr=1.2e-3), paramwise_cfg=dict(layer_decay_rate=0.75), clip_grad=dict(max_norm=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    # a ratio, so that layer decay also scales the minimum rate of 1e-6
    dict(
        type='CosineAnnealingLR', eta_min_ratio=1e-6 / 1.2e-3, by_epoch=True, begin=5, end=50, convert_to_iter_based=True),
]
