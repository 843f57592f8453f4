# UNIC: DINO, DeiT-III, iBOT and dBOT fine-tuned on ImageNet-1K, all ViT-B/16, distilled into a ViT-B/16: 83.8 by logistic
# regression, 39.6 mIoU linear. Each teacher has a ladder of projectors for cls and one for patches; the loss is half cosine
# and half smooth L1, and cls weighs as much as all patches. Numbers: main_unic.py and its defaults. dBOT's cls is its
# normalised mean of patches, and its patches are not normalised, as in the reference code. Jitter, grey, blur and
# solarisation are mmpretrain's; bf16 instead of fp16 is our choice.
_base_ = [
    '../_base_/datasets/in1k_pretrain_224.py', '../_base_/schedules/pretrain_bs1024_300e.py', '../_base_/runtime.py']

find_unused_parameters = True  # the student's final norm
part = dict(
    student=['block:0', 'block:1', 'block:2', 'block:3', 'block:4', 'block:5', 'block:6', 'block:7', 'block:8', 'block:9',
             'block:10', 'block:11'],
    head=dict(type='LadderHead', width=768, last_width=3072),
    normalize=dict(type='RunningStandardize', share=dict(type='CosineRamp', start=1.0, end=0.001)),
    loss=dict(type='CosineSmoothL1Loss', cosine=0.5, smooth_l1=0.5, beta=1.0), weight=0.5)
model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(type='PlainViT', arch='b', patch_size=16, position='learned', drop_path_rate=0.1),
    masking=dict(type='NoMasking'),
    balance=dict(type='TeacherDropping', drop=0.5),
    teachers=dict(
        dino=dict(
            type='ViTTeacher', arch='b', patch_size=16, network=dict(position='learned'),
            checkpoint='checkpoints/dino_vitbase16_pretrain.pth'),
        deit3=dict(
            type='TimmTeacher', model='deit3_base_patch16_224', checkpoint='checkpoints/deit_3_base_224_1k.pth'),
        ibot=dict(
            type='ViTTeacher', arch='b', patch_size=16, network=dict(position='learned'),
            checkpoint='checkpoints/ibot_vitb16_teacher.pth'),
        dbot=dict(
            type='TimmTeacher', model='vit_base_patch16_224', options=dict(global_pool='avg'),
            pixel_mean=[123.675, 116.28, 103.53], pixel_std=[58.395, 57.12, 57.375],
            checkpoint='checkpoints/dbot_base_finetuned_in1k.pth')),
    objectives=dict(
        dino_cls=dict(teacher='dino', tap='output', region='cls', **part),
        dino=dict(teacher='dino', tap='output', region='all', **part),
        deit3_cls=dict(teacher='deit3', tap='output', region='cls', **part),
        deit3=dict(teacher='deit3', tap='output', region='all', **part),
        ibot_cls=dict(teacher='ibot', tap='output', region='cls', **part),
        ibot=dict(teacher='ibot', tap='output', region='all', **part),
        dbot_cls=dict(teacher='dbot', tap='pooled', region='cls', **part),
        dbot=dict(teacher='dbot', tap='block:-1', region='all', **part)))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224, crop_ratio_range=(0.08, 1.0), backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandomApply', prob=0.8,
        transforms=[dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)]),
    dict(type='RandomGrayscale', prob=0.2, keep_channels=True, channel_weights=(0.114, 0.587, 0.2989)),
    dict(type='GaussianBlur', magnitude_range=(0.1, 5.0), magnitude_std='inf', prob=0.2),
    dict(type='Solarize', thr=128, prob=0.2),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=64, collate_fn=dict(_delete_=True, type='default_collate'), dataset=dict(pipeline=train_pipeline))
optim_wrapper = dict(optimizer=dict(lr=3e-4 * 512 / 256, betas=(0.9, 0.99), weight_decay=0.03))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=10, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=True, begin=10, end=200, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=200)
auto_scale_lr = dict(base_batch_size=512)
