# Proteus, ViT-B/14 from DINOv2's ViT-L: 84.9 linear, 54.4 mIoU. The student runs twice, on the intact image and on one of
# which, for the first half of the batch, 50 % of the patches are mask tokens. Numbers: run_pretrain.sh and its defaults.
# The code adds a mean over cls to a mean over cls and all 256 patches, with one head for cls: weights 1 + 1/257 and 256/257.
_base_ = [
    '../_base_/datasets/in1k_pretrain_224.py', '../_base_/schedules/pretrain_bs2048_300e.py', '../_base_/runtime.py']

token = dict(
    teacher='dinov2', tap='output', student='output', head=dict(type='LinearHead', norm=True), loss=dict(type='MSELoss'))
model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(type='MaskTokenViT', arch='b', patch_size=14, position='learned', layer_scale=1.0),
    masking=dict(type='IntactAndMasked', ratio=0.5, share=0.5),
    teachers=dict(
        dinov2=dict(
            type='ViTTeacher', arch='l', patch_size=14, network=dict(position='learned', layer_scale=1.0),
            checkpoint='checkpoints/dinov2_vitl14_pretrain.pth')),
    objectives=dict(
        cls=dict(region='intact_cls', weight=1 + 1 / 257, **token),
        feature=dict(region='intact', weight=256 / 257, **token),
        patch=dict(region='hidden', **token)))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224, backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandAugment', policies='timm_increasing', num_policies=2, total_level=10, magnitude_level=9,
        magnitude_std=0.5, hparams=dict(pad_val=[104, 116, 124], interpolation='bicubic')),
    dict(
        type='RandomErasing', erase_prob=0.25, mode='rand', min_area_ratio=0.02, max_area_ratio=1 / 3,
        fill_color=[103.53, 116.28, 123.675], fill_std=[57.375, 57.12, 58.395]),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=64, collate_fn=dict(_delete_=True, type='default_collate'), dataset=dict(pipeline=train_pipeline))
optim_wrapper = dict(optimizer=dict(lr=5e-4), clip_grad=None)
param_scheduler = [
    dict(type='LinearLR', start_factor=2e-3, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5, end=300, convert_to_iter_based=True),
]
auto_scale_lr = dict(base_batch_size=512)
