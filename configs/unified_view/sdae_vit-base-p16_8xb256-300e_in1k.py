# SdAE: a moving average of the student, LN, decoder, cosine. SdAE's teacher sees only several folds of the hidden
# patches; here it sees the whole image. Otherwise as in every row here: ViT-B/16, MaskDistill's schedule of 300 epochs.
_base_ = [
    '../_base_/models/asymmetric_vit-base-p16.py', '../_base_/datasets/in1k_pretrain_224.py',
    '../_base_/schedules/pretrain_bs2048_300e.py', '../_base_/runtime.py']

model = dict(
    teachers=dict(ema=dict(type='MomentumTeacher', momentum=0.9998)),
    objectives=dict(
        feature=dict(
            teacher='ema', tap='output', normalize=dict(type='TokenStandardize', unbiased=False), student='output',
            head=dict(type='TransformerDecoder', depth=8, width=512, num_heads=16), loss=dict(type='CosineLoss'),
            region='hidden')))
train_dataloader = dict(batch_size=256)
