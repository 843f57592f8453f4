# GreenMIM: normalised pixels, Swin-B, a decoder of one block on the visible squares of 32 × 32 pixels, L2. GreenMIM's
# grouped window attention, which does not compute hidden patches, is in no package here: this Swin computes them from a
# mask token and drops their output. Otherwise as in every row here: 224 px, MaskDistill's schedule of 300 epochs.
_base_ = [
    '../_base_/datasets/in1k_pretrain_224.py', '../_base_/schedules/pretrain_bs2048_300e.py', '../_base_/runtime.py']

model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(
        type='BackboneStudent', patch_size=32, mask_at='patch_embed', visible_only=True,
        network=dict(type='mmpretrain.SwinTransformer', arch='base', img_size=224)),
    masking=dict(type='RandomMasking', ratio=0.75),
    teachers=dict(pixel=dict(type='PixelTeacher')),
    objectives=dict(
        pixel=dict(
            teacher='pixel', tap='output', normalize=dict(type='TokenStandardize', unbiased=True), student='output',
            head=dict(type='TransformerDecoder', depth=1, width=512, num_heads=16), loss=dict(type='MSELoss'),
            region='hidden')))
train_dataloader = dict(batch_size=256)
