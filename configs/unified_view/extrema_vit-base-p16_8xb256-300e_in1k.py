# ExtreMA: five masks of each image, each of which shows another fifth of its patches; a query attends to them in two
# cross-attention blocks and predicts the cls token of a moving average that sees all, LN, cosine. ExtreMA's encoder has no cls
# token, both sides end in such blocks and projection MLPs with LN, and its two sides see other crops. Otherwise as in every row
# here: ViT-B/16, MaskDistill's schedule of 300 epochs.
_base_ = [
    '../_base_/models/asymmetric_vit-base-p16.py', '../_base_/datasets/in1k_pretrain_224.py',
    '../_base_/schedules/pretrain_bs2048_300e.py', '../_base_/runtime.py']

model = dict(
    masking=dict(_delete_=True, type='DisjointMasks', parts=5),
    teachers=dict(ema=dict(type='MomentumTeacher', momentum=0.9998)),
    objectives=dict(
        feature=dict(
            teacher='ema', tap='output', normalize=dict(type='TokenStandardize', unbiased=False), student='output',
            head=dict(type='CrossAttentionDecoder', depth=2, width=768, num_heads=12), loss=dict(type='CosineLoss'),
            region='cls')))
train_dataloader = dict(batch_size=256)
