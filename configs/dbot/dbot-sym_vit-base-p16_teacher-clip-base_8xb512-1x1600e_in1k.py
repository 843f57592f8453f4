# dBOT, symmetric, ViT-B/16 from CLIP-B/16: one stage of 1600 epochs (85.7 top-1, 53.6 AP-box, 52.9 mIoU). Rate 3e-3 at batch
# 4096, betas (0.9, 0.98), warm-up 10, clip 3.0, crop (0.4, 1) and colour jitter: Table A1. The reference code has eps 1e-6,
# cosine to 1e-5, jitter before crop and flip, and, as BEiT, no weight decay on cls and learned positions.
_base_ = [
    '../_base_/models/dbot-sym_vit-base-p16.py', '../_base_/datasets/in1k_pretrain_224_jitter.py',
    '../_base_/schedules/pretrain_bs4096_800e.py', '../_base_/runtime.py']

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4, hue=0.0),
    dict(type='mkd_plugin.CropForDevice', scale=224, crop_ratio_range=(0.4, 1.0)),
    dict(type='mkd_plugin.FlipOnDevice', prob=0.5),
    dict(type='mkd_plugin.PackCrops'),
]
train_dataloader = dict(batch_size=512, dataset=dict(pipeline=train_pipeline))
optim_wrapper = dict(
    optimizer=dict(lr=3e-3, betas=(0.9, 0.98), eps=1e-6), clip_grad=dict(max_norm=3.0),
    paramwise_cfg=dict(custom_keys=dict(cls_token=dict(decay_mult=0.0), pos_embed=dict(decay_mult=0.0))))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=10, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=10, end=1600, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=1600)
