# data2vec: the mean of the top six blocks of a moving average of the student, LN, one linear layer, smooth L1.
# data2vec for vision also normalises each block's output by an LN before the mean (read in forks of its reference
# code), and raises the momentum over the first epochs; this row averages raw outputs and keeps dBOT's best momentum
# constant (its Table 5). Otherwise as in every row here: ViT-B/16, MaskDistill's schedule of 300 epochs.
_base_ = [
    '../_base_/models/symmetric_vit-base-p16.py', '../_base_/datasets/in1k_pretrain_224.py',
    '../_base_/schedules/pretrain_bs2048_300e.py', '../_base_/runtime.py']

model = dict(
    teachers=dict(ema=dict(type='MomentumTeacher', momentum=0.9998)),
    objectives=dict(
        feature=dict(
            teacher='ema', tap='mean:last-6', normalize=dict(type='TokenStandardize', unbiased=False), student='output',
            head=dict(type='LinearHead'), loss=dict(type='SmoothL1Loss', beta=2.0), region='hidden')))
train_dataloader = dict(batch_size=256)
