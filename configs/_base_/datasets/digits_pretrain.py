# scikit-learn's digits (written by tools/dataset_tools/make_digits.py), unlabelled. No flips, because a mirrored digit is
# a different symbol.
data_root = 'data/digits/'
data_preprocessor = dict(
    type='SelfSupDataPreprocessor', mean=[77.9, 77.9, 77.9], std=[92.8, 92.8, 92.8], to_rgb=True)

train_dataloader = dict(
    batch_size=48,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='mkd_plugin.ElasticSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='CustomDataset',
        data_root=data_root,
        data_prefix='train',
        with_label=False,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='RandomResizedCrop', scale=24, crop_ratio_range=(0.4, 1.0), interpolation='bicubic'),
            dict(type='PackInputs'),
        ]))
