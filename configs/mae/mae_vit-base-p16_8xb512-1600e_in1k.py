# MAE, ViT-B/16, 1600 epochs: the baseline. dBOT's student and decoder without drop path, per-patch normalised pixels as
# target, mean squared error on hidden patches.
_base_ = [
    '../_base_/datasets/in1k_pretrain_224.py', '../_base_/schedules/pretrain_bs4096_800e.py', '../_base_/runtime.py']

model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(type='VisibleViT', arch='b', patch_size=16),
    masking=dict(type='RandomMasking', ratio=0.75),
    teachers=dict(pixel=dict(type='PixelTeacher')),
    objectives=dict(
        pixel=dict(
            teacher='pixel', tap='output', normalize=dict(type='TokenStandardize', unbiased=True, eps=1e-6),
            student='output', head=dict(type='TransformerDecoder', depth=8, width=512, num_heads=16),
            loss=dict(type='MSELoss'), region='hidden')))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=40, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=40, end=1600, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=1600)
