# Scenes of digits (written by tools/dataset_tools/make_digit_scenes.py) without labels and without flips.
data_root = 'data/digit_scenes/'
data_preprocessor = dict(
    type='mkd_plugin.CropPreprocessor', mean=[60, 60, 60], std=[48, 48, 48], to_rgb=True)

train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='mkd_plugin.ElasticSampler', shuffle=True),
    collate_fn=dict(type='mkd_plugin.collate_crops'),
    dataset=dict(
        type='mkd_plugin.ImageFolder',
        data_root=data_root,
        data_prefix='coco/train',
        pipeline=[
            dict(type='mkd_plugin.LoadAnyImage'),
            dict(type='mkd_plugin.CropForDevice', scale=80, crop_ratio_range=(0.15, 0.8)),
            dict(type='mkd_plugin.PackCrops'),
        ]))
