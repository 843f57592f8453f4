# The RADIO-style ViT-B/16 with two resolutions in one run: crops have 512 px, and the student sees half of each batch at
# 512 px, the other half at 256 px. All tokens are compared on the grid of 256 px, to which those of large images are
# resampled (RADIO compares each on its own grid). The share and the batch are our choices.
_base_ = 'radio_vit-base-p16_teachers-dinov3-siglip2-sam_8xb128-300e_in1k.py'

model = dict(backbone=dict(type='TwoSizeViT', large_size=512, share=0.5))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mkd_plugin.CropForDevice', scale=512, crop_ratio_range=(0.2, 1.0)),
    dict(type='mkd_plugin.FlipOnDevice', prob=0.5),
    dict(type='mkd_plugin.PackCrops'),
]
train_dataloader = dict(batch_size=64, dataset=dict(pipeline=train_pipeline))
optim_wrapper = dict(optimizer=dict(lr=3e-4))
auto_scale_lr = dict(base_batch_size=512)
