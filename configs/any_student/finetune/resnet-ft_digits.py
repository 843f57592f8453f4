# mmpretrain's own ResNet on a few labelled digits, from the student of resnet_digits or from scratch. The recipe is
# that of dbot-ft_digits without layer-wise rate decay, which mmpretrain's ResNet does not know.
_base_ = ['../../_base_/datasets/digits_finetune.py', '../../_base_/runtime.py']

model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet_CIFAR', depth=18, stem_channels=16, base_channels=16, strides=(2, 2, 2, 1)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead', num_classes=10, in_channels=128,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')))

optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05))
max_iters = 400  # the same number of steps for any number of labels
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=40),
    dict(type='CosineAnnealingLR', eta_min_ratio=1e-3, by_epoch=False, begin=40, end=max_iters),
]
train_cfg = dict(by_epoch=False, max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(checkpoint=dict(interval=-1, save_last=False))
log_processor = dict(by_epoch=False)
