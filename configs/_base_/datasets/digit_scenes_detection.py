# Scenes of digits (written by tools/dataset_tools/make_digit_scenes.py) for detectors and instance segmentation. Only the first
# 100 of the 1,000 training scenes are used as labelled images: `train_dataloader.dataset.indices`. No flips, because a mirrored
# digit is not a digit. Images keep their size in the test; the identity scale is there because mmdet requires one.
data_root = 'data/digit_scenes/'
metainfo = dict(
    classes=tuple('0123456789'),
    palette=[
        (230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200), (245, 130, 48),
        (145, 30, 180), (70, 240, 240), (240, 50, 230), (210, 245, 60), (250, 190, 212)])

train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='CocoDataset',
        data_root=data_root,
        ann_file='coco/annotations/train.json',
        data_prefix=dict(img='coco/train/'),
        metainfo=metainfo,
        indices=100,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(type='RandomResize', scale=(136, 136), ratio_range=(0.75, 1.25), keep_ratio=True),
            dict(type='PackDetInputs'),
        ]))
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CocoDataset',
        data_root=data_root,
        ann_file='coco/annotations/val.json',
        data_prefix=dict(img='coco/val/'),
        metainfo=metainfo,
        test_mode=True,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale_factor=1.0, keep_ratio=True),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
        ]))
val_evaluator = dict(
    type='CocoMetric', ann_file=data_root + 'coco/annotations/val.json', metric=['bbox', 'segm'], format_only=False)
val_cfg = dict(type='ValLoop')
test_dataloader, test_evaluator, test_cfg = val_dataloader, val_evaluator, dict(type='TestLoop')
