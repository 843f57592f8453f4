# MaskDistill's Table 13: rate 2e-4 at batch 1024, layer decay 0.85, 30 epochs, warm-up 5, drop path 0.25, no gradient clip.
_base_ = '../../../downstream/mmpretrain/vit-huge-p14_ft_8xb128-50e_in1k.py'

model = dict(
    backbone=dict(
        drop_path_rate=0.25, position='none', relative_position='per_block', layer_scale=1e-5,
        init_cfg=dict(checkpoint='work_dirs/maskdistill_vit-huge-p14_teacher-clip-large_8xb256-300e_in1k/epoch_300.pth')))
optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(layer_decay_rate=0.85), clip_grad=None)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    # a ratio, so that layer decay also scales the minimum rate of 1e-6
    dict(type='CosineAnnealingLR', eta_min_ratio=1e-6 / 2e-4, by_epoch=True, begin=5, end=30, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=30)
