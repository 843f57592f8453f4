# HiViT: MAE with its own student, mmpretrain's MAEHiViT-B, which computes visible patches only; normalised pixels, a
# decoder of six blocks (mmpretrain's configs/mae), L2. Otherwise as in every row here: MaskDistill's schedule of 300
# epochs.
_base_ = [
    '../_base_/datasets/in1k_pretrain_224.py', '../_base_/schedules/pretrain_bs2048_300e.py', '../_base_/runtime.py']

model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(
        type='BackboneStudent', patch_size=16, mask_at='units',
        network=dict(type='mmpretrain.MAEHiViT', arch='base', img_size=224)),
    masking=dict(type='RandomMasking', ratio=0.75),
    teachers=dict(pixel=dict(type='PixelTeacher')),
    objectives=dict(
        pixel=dict(
            teacher='pixel', tap='output', normalize=dict(type='TokenStandardize', unbiased=True), student='output',
            head=dict(type='TransformerDecoder', depth=6, width=512, num_heads=16), loss=dict(type='MSELoss'),
            region='hidden')))
train_dataloader = dict(batch_size=256)
