# ImageNet-1K, one crop (0.2, 1) and flip, in two views: with colour jitter 0.4 for the student, without for the teachers
# (TinyMIM's reference code). The host's own transforms crop on the CPU.
_base_ = 'in1k_pretrain_224.py'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224, crop_ratio_range=(0.2, 1.0), backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='MultiView', num_views=[1, 1],
        transforms=[[dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4, hue=0.0)], []]),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    collate_fn=dict(_delete_=True, type='default_collate'), dataset=dict(pipeline=train_pipeline))
