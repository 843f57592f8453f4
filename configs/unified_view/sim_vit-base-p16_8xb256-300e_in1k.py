# SIM (Siamese Image Modeling): a moving average of the student and the prediction, both batch-normalised, decoder, UniGrad.
# SIM's teacher sees another crop, whose place relative to the student's enters its decoder; here both see the same crop. It has
# projection layers on both sides as well. The depth of the decoder is our choice. Otherwise as in every row here: ViT-B/16,
# MaskDistill's schedule of 300 epochs.
_base_ = [
    '../_base_/models/asymmetric_vit-base-p16.py', '../_base_/datasets/in1k_pretrain_224.py',
    '../_base_/schedules/pretrain_bs2048_300e.py', '../_base_/runtime.py']

model = dict(
    teachers=dict(ema=dict(type='MomentumTeacher', momentum=0.9998)),
    objectives=dict(
        feature=dict(
            teacher='ema', tap='output', normalize=dict(type='BatchStandardize'), normalize_prediction=True,
            student='output', head=dict(type='TransformerDecoder', depth=4, width=512, num_heads=16),
            loss=dict(type='UniGradLoss', weight=0.02), region='hidden')))
train_dataloader = dict(batch_size=256)
