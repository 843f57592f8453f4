# CAE: class indices of DALL-E's dVAE (as in BEiT's config), blocks that hide exactly 98 of 196 patches, four cross-attention
# blocks that regress the hidden tokens from the visible ones, four transformer blocks of the hidden tokens, cross entropy. CAE
# also aligns the regressed tokens with its encoder's tokens of the hidden patches, by an L2 loss of weight 2; our head has one
# output, so this is left out. mmpretrain has CAE whole. Otherwise as in every row here: ViT-B/16, MaskDistill's schedule of 300
# epochs.
_base_ = [
    '../_base_/models/asymmetric_vit-base-p16.py', '../_base_/datasets/in1k_pretrain_224.py',
    '../_base_/schedules/pretrain_bs2048_300e.py', '../_base_/runtime.py']

model = dict(
    backbone=dict(layer_scale=0.1, drop_path_rate=0.1),
    masking=dict(_delete_=True, type='ExactBlockMasking', ratio=0.5, min_block=16),
    teachers=dict(
        dvae=dict(
            type='GeneratorTeacher', num_classes=8192, img_size=112,
            generator=dict(
                type='mmpretrain.DALL-E',
                init_cfg=dict(type='Pretrained', checkpoint='checkpoints/dalle_encoder.pth')),
            pixel_mean=[-31.875] * 3, pixel_std=[318.75] * 3)),
    objectives=dict(
        code=dict(
            teacher='dvae', tap='output', student='output',
            head=dict(type='ContextRegressor', depth=4, num_heads=12, layer_scale=0.1, decoder_depth=4),
            loss=dict(type='TokenCrossEntropy'), region='hidden')))
train_dataloader = dict(batch_size=256)
