# SimMIM with its own student: raw pixels, Swin-B, one linear layer, L1; 60 % hidden in squares of 32 × 32 pixels, by a
# mask token after the patch embedding. SimMIM trains at 192 px with windows of 6; here at 224 px with windows of 7, as in
# every row: MaskDistill's schedule of 300 epochs. The file starts mmpretrain's SwinTransformer.
_base_ = [
    '../_base_/datasets/in1k_pretrain_224.py', '../_base_/schedules/pretrain_bs2048_300e.py', '../_base_/runtime.py']

model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(
        type='BackboneStudent', patch_size=32, mask_at='patch_embed',
        network=dict(type='mmpretrain.SwinTransformer', arch='base', img_size=224)),
    masking=dict(type='RandomMasking', ratio=0.6),
    teachers=dict(pixel=dict(type='PixelTeacher')),
    objectives=dict(
        pixel=dict(
            teacher='pixel', tap='output', student='output', head=dict(type='LinearHead'), loss=dict(type='L1Loss'),
            region='hidden')))
train_dataloader = dict(batch_size=256)
