# Fine-tuning on a few labelled digits, similar to dBOT's Table A2: mean of patch tokens → new LayerNorm → linear layer,
# with layer-wise rate decay. tools/quickstart.py sets the checkpoint and the list of labelled images.
_base_ = ['../../../_base_/datasets/digits_finetune.py', '../../../_base_/runtime.py']

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mkd_plugin.ClassifierViT', arch=dict(width=96, depth=4, num_heads=4), img_size=24, patch_size=4,
        drop_path_rate=0.1),
    head=dict(
        type='LinearClsHead', num_classes=10, in_channels=96,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.01)))

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='mkd_plugin.LayerDecayConstructor', paramwise_cfg=dict(layer_decay_rate=0.75))
max_iters = 400  # the same number of steps for any number of labels
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=40),
    dict(type='CosineAnnealingLR', eta_min_ratio=1e-3, by_epoch=False, begin=40, end=max_iters),
]
train_cfg = dict(by_epoch=False, max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(checkpoint=dict(interval=-1, save_last=False))
log_processor = dict(by_epoch=False)
