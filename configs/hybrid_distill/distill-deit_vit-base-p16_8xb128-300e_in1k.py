# Baseline Distill-DeiT: features of DeiT only, no masking. 82.0 top-1, 47.7 AP-box, 42.1 AP-mask, 47.3 mIoU.
_base_ = [
    '../_base_/models/distill_vit-base-p16.py', '../_base_/datasets/in1k_pretrain_224.py',
    '../_base_/schedules/pretrain_bs1024_300e.py', '../_base_/runtime.py']

train_dataloader = dict(batch_size=128)
