# Table A2 for CLIP-distilled students: layer decay 0.75, drop path 0.1; rate 2e-4, our choice from the sweep {1, 2, 3,
# 4}e-4.
_base_ = 'dbot-ft_vit-base-p16_8xb128-100e_in1k.py'

model = dict(
    backbone=dict(
        drop_path_rate=0.1, position='none', relative_position='per_block', layer_scale=0.1,
        init_cfg=dict(checkpoint='work_dirs/dbot-sym_vit-base-p16_teacher-clip-base_8xb512-1x1600e_in1k/epoch_1600.pth')))
optim_wrapper = dict(optimizer=dict(lr=2e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    # a ratio, so that layer decay also scales the minimum rate of 1e-6
    dict(type='CosineAnnealingLR', eta_min_ratio=1e-6 / 2e-4, by_epoch=True, begin=5, end=100, convert_to_iter_based=True),
]
