# Crops of the boxes in scenes of digits (written by tools/dataset_tools/make_digit_scenes.py), for classifiers. Only the first
# 500 training crops, from about 80 scenes, are used as labelled images: `train_dataloader.dataset.indices`.
data_root = 'data/digit_scenes/'
data_preprocessor = dict(num_classes=10, mean=[60, 60, 60], std=[48, 48, 48], to_rgb=True)
classes = list('0123456789')

train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='CustomDataset',
        data_root=data_root,
        ann_file='crops/train.txt',
        data_prefix='crops/train',
        classes=classes,
        indices=500,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='RandomResizedCrop', scale=48, crop_ratio_range=(0.6, 1.0), interpolation='bicubic'),
            dict(type='PackInputs'),
        ]))
val_dataloader = dict(
    batch_size=100,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='CustomDataset',
        data_root=data_root,
        ann_file='crops/val.txt',
        data_prefix='crops/val',
        classes=classes,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(48, 48), interpolation='bicubic'),
            dict(type='PackInputs'),
        ]))
val_evaluator = dict(type='Accuracy', topk=1)
val_cfg = dict()
test_dataloader, test_evaluator, test_cfg = val_dataloader, val_evaluator, val_cfg
