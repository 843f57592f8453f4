# SplitMask: the image's patches are divided into two halves, and from each half a decoder of two blocks predicts the dVAE's
# classes of the other (as in BEiT's config); InfoNCE makes the pooled predictions of both halves alike. SplitMask pools the
# decoder's features before the classifier, here the scores after it; temperature and weight of the InfoNCE are our choices.
# Otherwise as in every row here: ViT-B/16, MaskDistill's schedule of 300 epochs.
_base_ = [
    '../_base_/models/asymmetric_vit-base-p16.py', '../_base_/datasets/in1k_pretrain_224.py',
    '../_base_/schedules/pretrain_bs2048_300e.py', '../_base_/runtime.py']

model = dict(
    masking=dict(_delete_=True, type='DisjointMasks', parts=2),
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
            head=dict(type='TransformerDecoder', depth=2, width=512, num_heads=16),
            loss=dict(type='ContrastedCrossEntropy', temperature=0.1, weight=1.0), region='hidden')))
train_dataloader = dict(batch_size=256)
