# ImageNet-1K, RandomResizedCrop (0.2, 1) bicubic + flip: as in dBOT's Table A1, MAE, DMAE and mmpretrain's config. The
# same boxes and flips are drawn here, but resizing and flipping run on the device.
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs512_mae.py'

data_preprocessor = dict(type='mkd_plugin.CropPreprocessor', non_blocking=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mkd_plugin.CropForDevice', scale=224, crop_ratio_range=(0.2, 1.0)),
    dict(type='mkd_plugin.FlipOnDevice', prob=0.5),
    dict(type='mkd_plugin.PackCrops'),
]
train_dataloader = dict(
    pin_memory=True,
    drop_last=True,  # as the official loaders: a smaller last batch would be another step
    sampler=dict(type='mkd_plugin.ElasticSampler', round_up=False),  # the same order for any number of processes
    collate_fn=dict(_delete_=True, type='mkd_plugin.collate_crops'),
    dataset=dict(pipeline=train_pipeline))
