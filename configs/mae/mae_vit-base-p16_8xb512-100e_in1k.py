# MAE with DMAE's number of epochs: its baseline for equal training (81.6 top-1). Pixels are not normalised, as in
# DMAE's reference script, so that only the alignment differs (our choice: the paper's baseline may have normalised
# them).
_base_ = [
    '../_base_/datasets/in1k_pretrain_224.py', '../_base_/schedules/pretrain_bs4096_100e.py', '../_base_/runtime.py']

model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(type='VisibleViT', arch='b', patch_size=16),
    masking=dict(type='RandomMasking', ratio=0.75),
    teachers=dict(pixel=dict(type='PixelTeacher')),
    objectives=dict(
        pixel=dict(
            teacher='pixel', tap='output', student='output',
            head=dict(type='TransformerDecoder', depth=8, width=512, num_heads=16),
            loss=dict(type='MSELoss'), region='hidden')))
