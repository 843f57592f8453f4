# MaskFeat with DINO's features: l2-normalised, one linear layer, cosine. Otherwise as in every row here: ViT-B/16,
# MaskDistill's schedule of 300 epochs.
_base_ = [
    '../_base_/models/symmetric_vit-base-p16.py', '../_base_/datasets/in1k_pretrain_224.py',
    '../_base_/schedules/pretrain_bs2048_300e.py', '../_base_/runtime.py']

model = dict(
    teachers=dict(
        dino=dict(
            type='ViTTeacher', arch='b', network=dict(position='learned'),
            checkpoint='checkpoints/dino_vitbase16_pretrain.pth')),
    objectives=dict(
        feature=dict(
            teacher='dino', tap='output', normalize=dict(type='L2Normalize'), student='output',
            head=dict(type='LinearHead'), loss=dict(type='CosineLoss'), region='hidden')))
train_dataloader = dict(batch_size=256)
