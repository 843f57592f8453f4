# CIFAR-100 at 224 px. The paper states batch 768 and rate 7.5e-6; the authors built on dBOT's code (run.sh,
# evaluation/eval_cls.py), where that is the rate per 512 images and training takes 1000 epochs. Layer decay, drop
# path and augmentation are those of ImageNet-1K (our choice).
_base_ = '../in1k/hybrid-ft_vit-base-p16_8xb32-100e_in1k.py'

mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]  # those of pre-training, not of this dataset
data_preprocessor = dict(num_classes=100, mean=mean, std=std, to_rgb=False)  # mmpretrain reads these images as RGB
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
    batch_size=96,
    dataset=dict(_delete_=True, type='CIFAR100', data_root='data/cifar100', split='train', pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=96,
    dataset=dict(_delete_=True, type='CIFAR100', data_root='data/cifar100', split='test', pipeline=test_pipeline))
test_dataloader = val_dataloader
model = dict(head=dict(num_classes=100))
optim_wrapper = dict(optimizer=dict(lr=7.5e-6 * 768 / 512))  # the reference code scales the rate by batch / 512
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=5, end=1000, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=1000)
auto_scale_lr = dict(base_batch_size=768)
