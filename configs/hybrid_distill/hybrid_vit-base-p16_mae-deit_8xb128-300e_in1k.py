# Hybrid Distill, ViT-B/16 from MAE and DeiT, K = 30 % (inferred): 50.3 AP-box, 44.2 AP-mask, 49.1 mIoU, 83.7 top-1.
_base_ = [
    '../_base_/models/hybrid_vit-base-p16.py', '../_base_/datasets/in1k_pretrain_224.py',
    '../_base_/schedules/pretrain_bs1024_300e.py', '../_base_/runtime.py']

train_dataloader = dict(batch_size=128)
