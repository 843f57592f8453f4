# BEiT: class indices of DALL-E's dVAE, one linear layer, cross entropy. Uses mmpretrain's dVAE with its converted file;
# OpenAI's is a pickled module and is refused. Its input is the image at 112 px, with pixels mapped from 0–1 to 0.1–0.9.
# Otherwise as in every row here: ViT-B/16, MaskDistill's schedule of 300 epochs.
_base_ = [
    '../_base_/models/symmetric_vit-base-p16.py', '../_base_/datasets/in1k_pretrain_224.py',
    '../_base_/schedules/pretrain_bs2048_300e.py', '../_base_/runtime.py']

model = dict(
    teachers=dict(
        dvae=dict(
            type='GeneratorTeacher', num_classes=8192, img_size=112,
            generator=dict(
                type='mmpretrain.DALL-E',
                init_cfg=dict(type='Pretrained', checkpoint='checkpoints/dalle_encoder.pth')),
            pixel_mean=[-31.875] * 3, pixel_std=[318.75] * 3)),
    objectives=dict(
        code=dict(
            teacher='dvae', tap='output', student='output', head=dict(type='LinearHead'),
            loss=dict(type='TokenCrossEntropy'), region='hidden')))
train_dataloader = dict(batch_size=256)
