# MimCo: MoCo v3's features, one linear layer, InfoNCE. MimCo's second, image-level InfoNCE with a queue is left out:
# the table's row is the patch-level one. Otherwise as in every row here: ViT-B/16, MaskDistill's schedule of 300
# epochs.
_base_ = [
    '../_base_/models/symmetric_vit-base-p16.py', '../_base_/datasets/in1k_pretrain_224.py',
    '../_base_/schedules/pretrain_bs2048_300e.py', '../_base_/runtime.py']

model = dict(
    teachers=dict(
        moco=dict(type='ViTTeacher', arch='b', checkpoint='checkpoints/vit-b-300ep.pth.tar', prefix='module.base_encoder.')),
    objectives=dict(
        feature=dict(
            teacher='moco', tap='output', student='output', head=dict(type='LinearHead'),
            loss=dict(type='TokenInfoNCE', temperature=0.1), region='hidden')))
train_dataloader = dict(batch_size=256)
