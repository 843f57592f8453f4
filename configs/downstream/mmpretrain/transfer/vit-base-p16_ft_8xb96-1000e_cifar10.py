# CIFAR-10 at 224 px: the recipe of Flowers 102, as in dBOT's reference code.
_base_ = './vit-base-p16_ft_8xb96-1000e_flowers102.py'

mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]  # those of pre-training, not of this dataset
data_preprocessor = dict(num_classes=10, mean=mean, std=std, to_rgb=False)  # mmpretrain reads these images as RGB
train_pipeline = [
    dict(type='RandomResizedCrop', scale=224, backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(
        type='RandAugment', policies='timm_increasing', num_policies=2, total_level=10, magnitude_level=9,
        magnitude_std=0.5, hparams=dict(pad_val=[124, 116, 104], interpolation='bicubic')),
    dict(
        type='RandomErasing', erase_prob=0.25, mode='rand', min_area_ratio=0.02, max_area_ratio=1 / 3, fill_color=mean,
        fill_std=std),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='Resize', scale=224, backend='pillow', interpolation='bicubic'),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    dataset=dict(_delete_=True, type='CIFAR10', data_root='data/cifar10', split='train', pipeline=train_pipeline))
val_dataloader = dict(
    dataset=dict(_delete_=True, type='CIFAR10', data_root='data/cifar10', split='test', pipeline=test_pipeline))
test_dataloader = val_dataloader
model = dict(head=dict(num_classes=10))
