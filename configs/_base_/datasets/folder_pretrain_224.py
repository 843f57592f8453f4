# Any folder of unlabelled images, nested or not, of any mode and size: set `--cfg-options data_root=DIR`. Crops and
# pixel statistics are those of in1k_pretrain_224.py.
data_root = 'data/images/'
data_preprocessor = dict(
    type='mkd_plugin.CropPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
    non_blocking=True)

train_dataloader = dict(
    batch_size=512,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,  # as the official loaders: a smaller last batch would be another step
    sampler=dict(type='mkd_plugin.ElasticSampler', shuffle=True, round_up=False),  # the same for any number of processes
    collate_fn=dict(type='mkd_plugin.collate_crops'),
    dataset=dict(
        type='mkd_plugin.ImageFolder',
        data_root=data_root,
        pipeline=[
            dict(type='mkd_plugin.LoadAnyImage'),
            dict(type='mkd_plugin.CropForDevice', scale=224, crop_ratio_range=(0.2, 1.0)),  # bicubic, on the device
            dict(type='mkd_plugin.FlipOnDevice', prob=0.5),
            dict(type='mkd_plugin.PackCrops'),
        ]))
