# ConvMAE: normalised pixels, a hybrid of convolutions and ViT, a decoder of eight blocks on the visible patches, L2.
# ConvMAE's own hybrid, two stages of masked convolutions before a ViT of visible patches, is in no package here; this row
# has timm's ResNet-ViT-B, which sees hidden patches in the mean colour and drops their output. ConvMAE also adds the
# stages' maps to its output. Otherwise as in every row here: MaskDistill's schedule of 300 epochs.
_base_ = [
    '../_base_/datasets/in1k_pretrain_224.py', '../_base_/schedules/pretrain_bs2048_300e.py', '../_base_/runtime.py']

model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(
        type='BackboneStudent', patch_size=16, mask_at='pixels', visible_only=True,
        network=dict(type='timm.vit_base_r50_s16_224')),
    masking=dict(type='RandomMasking', ratio=0.75),
    teachers=dict(pixel=dict(type='PixelTeacher')),
    objectives=dict(
        pixel=dict(
            teacher='pixel', tap='output', normalize=dict(type='TokenStandardize', unbiased=True), student='output',
            head=dict(type='TransformerDecoder', depth=8, width=512, num_heads=16), loss=dict(type='MSELoss'),
            region='hidden')))
train_dataloader = dict(batch_size=256)
