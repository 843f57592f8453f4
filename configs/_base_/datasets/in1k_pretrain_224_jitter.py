# ImageNet-1K with colour jitter 0.4 (brightness, contrast, saturation) before crop and flip, as in BEiT: for
# MaskDistill, FD and dBOT's recipe for data-rich teachers. The teacher sees the jittered image too. The crop (0.2, 1)
# is from "Towards Understanding Masked Distillation"; MaskDistill does not state one.
_base_ = 'in1k_pretrain_224.py'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4, hue=0.0),
    dict(type='mkd_plugin.CropForDevice', scale=224, crop_ratio_range=(0.2, 1.0)),
    dict(type='mkd_plugin.FlipOnDevice', prob=0.5),
    dict(type='mkd_plugin.PackCrops'),
]
train_dataloader = dict(batch_size=256, dataset=dict(pipeline=train_pipeline))
