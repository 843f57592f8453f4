# scikit-learn's digits with labels; `ann_file` is the list of labelled images (mkd_plugin.datasets.draw_labelled).
data_root = 'data/digits/'
data_preprocessor = dict(num_classes=10, mean=[77.9, 77.9, 77.9], std=[92.8, 92.8, 92.8], to_rgb=True)
classes = [str(digit) for digit in range(10)]

train_dataloader = dict(
    batch_size=20,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='CustomDataset',
        data_root=data_root,
        ann_file='meta/10_0.txt',
        data_prefix='train',
        classes=classes,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='RandomResizedCrop', scale=24, crop_ratio_range=(0.6, 1.0), interpolation='bicubic'),
            dict(type='PackInputs'),
        ]))
val_dataloader = dict(
    batch_size=357,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='CustomDataset',
        data_root=data_root,
        data_prefix='val',
        classes=classes,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=24, interpolation='bicubic'),
            dict(type='PackInputs'),
        ]))
val_evaluator = dict(type='Accuracy', topk=1)
test_dataloader = val_dataloader
test_evaluator = val_evaluator
val_cfg = dict()
test_cfg = dict()
