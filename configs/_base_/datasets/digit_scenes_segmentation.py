# Scenes of digits (written by tools/dataset_tools/make_digit_scenes.py) for segmentors. As in ADE20K's files, label 0 is
# the background; here it is a class, the first of eleven, because telling digits from clutter is part of the task. Only the
# first 100 of the 1,000 training scenes are used as labelled images: `train_dataloader.dataset.indices`. No flips.
data_root = 'data/digit_scenes/'
metainfo = dict(
    classes=('background', *'0123456789'),
    palette=[
        (0, 0, 0), (230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200), (245, 130, 48),
        (145, 30, 180), (70, 240, 240), (240, 50, 230), (210, 245, 60), (250, 190, 212)])

train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='BaseSegDataset',
        data_root=data_root,
        data_prefix=dict(img_path='ade/images/training', seg_map_path='ade/annotations/training'),
        img_suffix='.png',
        metainfo=metainfo,
        indices=100,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='RandomResize', scale=(136, 136), ratio_range=(0.75, 1.25), keep_ratio=True),
            dict(type='RandomCrop', crop_size=(96, 96)),
            dict(type='PackSegInputs'),
        ]))
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='BaseSegDataset',
        data_root=data_root,
        data_prefix=dict(img_path='ade/images/validation', seg_map_path='ade/annotations/validation'),
        img_suffix='.png',
        metainfo=metainfo,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ]))
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
val_cfg = dict(type='ValLoop')
test_dataloader, test_evaluator, test_cfg = val_dataloader, val_evaluator, dict(type='TestLoop')
