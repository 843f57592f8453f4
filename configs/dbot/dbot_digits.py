# dBOT on the embedded digits: what tools/quickstart.sh runs. The method is that of dbot_vit-base-p16; only sizes differ.
_base_ = ['../_base_/datasets/digits_pretrain.py', '../_base_/runtime.py']

stage_length = 100  # epochs
model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(
        type='VisibleViT', arch=dict(width=96, depth=4, num_heads=4), img_size=24, patch_size=4, drop_path_rate=0.0),
    masking=dict(type='RandomMasking', ratio=0.75),
    teachers=dict(boot=dict(type='BootstrappedTeacher', start='student')),
    objectives=dict(
        feature=dict(
            teacher='boot', tap='block:-1', normalize=dict(type='TokenStandardize', unbiased=True),
            student='output', head=dict(type='TransformerDecoder', depth=2, width=96, num_heads=4),
            loss=dict(type='SmoothL1Loss', beta=2.0), region='hidden+cls')))
custom_hooks = [dict(type='mkd_plugin.StageHook', lengths=[stage_length, stage_length])]

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05),
    paramwise_cfg=dict(flat_decay_mult=0.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=10, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=10, end=stage_length, convert_to_iter_based=True),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=2 * stage_length)
