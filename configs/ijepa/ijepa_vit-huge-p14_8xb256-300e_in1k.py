# I-JEPA, ViT-H/14, 300 epochs: 79.3 linear. The visible context predicts the moving average's tokens in four blocks, each in a
# pass of its own. Numbers are those of the reference config in1k_vith14_ep300.yaml (its batch 2048 is 16 × 128).
_base_ = [
    '../_base_/datasets/in1k_pretrain_224.py', '../_base_/schedules/pretrain_bs2048_300e.py', '../_base_/runtime.py']

model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(type='VisibleViT', arch='h', patch_size=14, cls_token=False),
    masking=dict(
        type='MultiBlockMasking', targets=4, target_area=(0.15, 0.2), target_aspect=(0.75, 1.5),
        context_area=(0.85, 1.0), min_visible=11),
    teachers=dict(
        ema=dict(type='MomentumTeacher', momentum=dict(type='LinearRamp', start=0.996, end=1.0))),
    objectives=dict(
        feature=dict(
            teacher='ema', tap='output', normalize=dict(type='TokenStandardize', unbiased=False, eps=1e-5),
            student='output',
            head=dict(type='TargetPredictor', blocks=4, depth=12, width=384, num_heads=16),
            loss=dict(type='SmoothL1Loss', beta=1.0), region='targets')))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mkd_plugin.CropForDevice', scale=224, crop_ratio_range=(0.3, 1.0)),
    dict(type='mkd_plugin.PackCrops'),
]
train_dataloader = dict(batch_size=256, dataset=dict(pipeline=train_pipeline))
optim_wrapper = dict(
    optimizer=dict(lr=1e-3, weight_decay=0.04),
    clip_grad=None,
    paramwise_cfg=dict(_delete_=True, flat_decay_mult=0.0))  # the mask token decays, as in the reference code
param_scheduler = [
    dict(type='LinearLR', start_factor=0.2, by_epoch=True, begin=0, end=40, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=True, begin=40, end=300, convert_to_iter_based=True),
    dict(  # weight decay from 0.04 to 0.4; a ratio, so that it stays 0 for biases and norms
        type='CosineAnnealingParamScheduler', param_name='weight_decay', eta_min_ratio=10.0, by_epoch=True, begin=0,
        end=300, convert_to_iter_based=True),
]
