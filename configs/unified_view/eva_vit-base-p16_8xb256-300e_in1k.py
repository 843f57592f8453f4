# EVA: CLIP's tokens, one linear layer, cosine, 40 % hidden block by block. EVA's student is a ViT-g of 1.0 billion
# parameters and its teacher EVA's CLIP-g; this row has ViT-B and OpenAI's CLIP-B. Its table row equals MVP's except for
# the normalisation, to which a cosine is invariant. Otherwise as in every row here: ViT-B/16, MaskDistill's schedule of
# 300 epochs.
_base_ = [
    '../_base_/models/symmetric_vit-base-p16.py', '../_base_/datasets/in1k_pretrain_224.py',
    '../_base_/schedules/pretrain_bs2048_300e.py', '../_base_/runtime.py']

model = dict(
    teachers=dict(clip=dict(type='CLIPTeacher', arch='b', checkpoint='checkpoints/ViT-B-16.pt')),
    objectives=dict(
        feature=dict(
            teacher='clip', tap='projected', student='output', head=dict(type='LinearHead'), loss=dict(type='CosineLoss'),
            region='hidden')))
train_dataloader = dict(batch_size=256)
