# MaskDistill's Table 13: rate 5e-4 at batch 1024, layer decay 0.65, 100 epochs, warm-up 20, drop path 0.1, no gradient clip.
_base_ = '../../../downstream/mmpretrain/vit-base-p16_ft_8xb128-100e_in1k.py'

model = dict(
    backbone=dict(
        drop_path_rate=0.1, position='none', relative_position='per_block', layer_scale=0.1,
        init_cfg=dict(checkpoint='work_dirs/maskdistill_vit-base-p16_8xb256-300e_in1k/epoch_300.pth')))
optim_wrapper = dict(optimizer=dict(lr=5e-4), paramwise_cfg=dict(layer_decay_rate=0.65), clip_grad=None)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    # a ratio, so that layer decay also scales the minimum rate of 1e-6
    dict(type='CosineAnnealingLR', eta_min_ratio=1e-6 / 5e-4, by_epoch=True, begin=20, end=100, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=100)
