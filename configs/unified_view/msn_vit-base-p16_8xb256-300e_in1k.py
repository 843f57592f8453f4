# MSN: the cls tokens of a student that sees 85 % of the patches and of a moving average that sees all are assigned to 1024
# learned prototypes; cross entropy, and maximal entropy of the mean assignment. One linear layer in place of MSN's projection
# MLPs of both sides. MSN also has ten small crops, another crop for the teacher, and balances its assignments by Sinkhorn's
# algorithm. The numbers are those of its public config for ViT-S/16. Otherwise as in every row here: ViT-B/16, MaskDistill's
# schedule of 300 epochs.
_base_ = [
    '../_base_/models/asymmetric_vit-base-p16.py', '../_base_/datasets/in1k_pretrain_224.py',
    '../_base_/schedules/pretrain_bs2048_300e.py', '../_base_/runtime.py']

model = dict(
    masking=dict(ratio=0.15),
    teachers=dict(ema=dict(type='MomentumTeacher', momentum=0.9998)),
    objectives=dict(
        assignment=dict(
            teacher='ema', tap='output', student='output', head=dict(type='LinearHead'),
            loss=dict(type='PrototypeCrossEntropy', prototypes=1024, temperature=0.1, sharpening=0.25), region='cls')))
train_dataloader = dict(batch_size=256)
