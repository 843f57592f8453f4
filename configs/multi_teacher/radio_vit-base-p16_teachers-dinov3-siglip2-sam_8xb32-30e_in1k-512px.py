# The second stage of the RADIO-style ViT-B/16: 512 px, from the student at 256 px. Positions are resized on loading; heads and
# statistics start anew. The number of epochs and the batch are our choices.
_base_ = 'radio_vit-base-p16_teachers-dinov3-siglip2-sam_8xb128-300e_in1k.py'

model = dict(
    backbone=dict(
        img_size=512,
        init_cfg=dict(
            type='Pretrained', prefix='backbone.',
            checkpoint='work_dirs/radio_vit-base-p16_teachers-dinov3-siglip2-sam_8xb128-300e_in1k/epoch_300.pth')))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mkd_plugin.CropForDevice', scale=512, crop_ratio_range=(0.2, 1.0)),
    dict(type='mkd_plugin.FlipOnDevice', prob=0.5),
    dict(type='mkd_plugin.PackCrops'),
]
train_dataloader = dict(batch_size=32, dataset=dict(pipeline=train_pipeline))
optim_wrapper = dict(optimizer=dict(lr=1.5e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=2, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=2, end=30, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=30)
auto_scale_lr = dict(base_batch_size=256)
