# ConMIM: a moving average of the student, batch-normalised, one linear layer, InfoNCE among the patches of an image.
# ConMIM's teacher and student see differently augmented views; here both see the same. Otherwise as in every row here:
# ViT-B/16, MaskDistill's schedule of 300 epochs.
_base_ = [
    '../_base_/models/symmetric_vit-base-p16.py', '../_base_/datasets/in1k_pretrain_224.py',
    '../_base_/schedules/pretrain_bs2048_300e.py', '../_base_/runtime.py']

model = dict(
    teachers=dict(ema=dict(type='MomentumTeacher', momentum=0.9998)),
    objectives=dict(
        feature=dict(
            teacher='ema', tap='output', normalize=dict(type='BatchStandardize'), student='output',
            head=dict(type='LinearHead'), loss=dict(type='TokenInfoNCE', temperature=0.1), region='hidden')))
train_dataloader = dict(batch_size=256)
