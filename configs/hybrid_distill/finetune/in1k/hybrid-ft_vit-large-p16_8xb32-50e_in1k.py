# ImageNet-1K, ViT-L: rate 3e-4 at batch 256; everything else as in dBOT's Table A2 (layer decay 0.75, drop path 0.2, 50
# epochs).
_base_ = '../../../downstream/mmpretrain/vit-large-p16_ft_8xb128-50e_in1k.py'

model = dict(
    backbone=dict(
        drop_path_rate=0.2,
        init_cfg=dict(checkpoint='work_dirs/hybrid_vit-large-p16_mae-clip_8xb128-40e_in21k/epoch_40.pth')),
    head=dict(init_cfg=[dict(type='TruncNormal', layer='Linear', std=0.01)]))
train_dataloader = dict(batch_size=32)
optim_wrapper = dict(optimizer=dict(lr=3e-4), paramwise_cfg=dict(layer_decay_rate=0.75))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    # a ratio, so that layer decay also scales the minimum rate of 1e-6
    dict(type='CosineAnnealingLR', eta_min_ratio=1e-6 / 3e-4, by_epoch=True, begin=5, end=50, convert_to_iter_based=True),
]
auto_scale_lr = dict(base_batch_size=256)
