# mmdet's COCO with the augmentation of dBOT's reference code: flip, then either resize (short side 480 to 800 pixels,
# long side at most 1333), or, as in DETR, resize (short side 400, 500 or 600), crop (sides of 384 to 600) and resize as
# before. Limiting the long side to 1333 before the crop as well is our choice (DETR's own code has no limit there).
_base_ = 'mmdet::_base_/datasets/coco_instance.py'

resize = dict(type='RandomChoiceResize', scales=[(short, 1333) for short in range(480, 801, 32)], keep_ratio=True)
train_pipeline = [
    dict(type='LoadImageFromFile', backend_args=_base_.backend_args),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandomChoice',
        transforms=[
            [resize],
            [
                dict(type='RandomChoiceResize', scales=[(400, 1333), (500, 1333), (600, 1333)], keep_ratio=True),
                dict(type='RandomCrop', crop_type='absolute_range', crop_size=(384, 600), allow_negative_crop=True),
                resize,
            ],
        ]),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
