# MaskDistill, ViT-B/16 from CLIP-B/16, 300 epochs: 85.0 top-1, 53.8 mIoU.
_base_ = [
    '../_base_/models/maskdistill_vit-base-p16.py', '../_base_/datasets/in1k_pretrain_224_jitter.py',
    '../_base_/schedules/pretrain_bs2048_300e.py', '../_base_/runtime.py']
