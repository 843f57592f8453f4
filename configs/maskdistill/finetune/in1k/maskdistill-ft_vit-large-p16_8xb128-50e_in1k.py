# MaskDistill's Table 13: rate 5e-4 at batch 1024, layer decay 0.8, 50 epochs, warm-up 5, drop path 0.2, no gradient
# clip. §4.1 states a layer decay of 0.75.
_base_ = '../../../downstream/mmpretrain/vit-large-p16_ft_8xb128-50e_in1k.py'

model = dict(
    backbone=dict(
        drop_path_rate=0.2, position='none', relative_position='per_block', layer_scale=1e-5,
        init_cfg=dict(checkpoint='work_dirs/maskdistill_vit-large-p16_8xb256-800e_in1k/epoch_800.pth')))
optim_wrapper = dict(optimizer=dict(lr=5e-4), paramwise_cfg=dict(layer_decay_rate=0.8), clip_grad=None)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    # a ratio, so that layer decay also scales the minimum rate of 1e-6
    dict(type='CosineAnnealingLR', eta_min_ratio=1e-6 / 5e-4, by_epoch=True, begin=5, end=50, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=50)
