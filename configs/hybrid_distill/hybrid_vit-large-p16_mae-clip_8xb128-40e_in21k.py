# Hybrid Distill, ViT-L/16 from MAE's ViT-L/16 and CLIP's ViT-L/14, 40 epochs of ImageNet-21K: 54.6 AP-box, 47.6
# AP-mask, 56.3 mIoU, 88.0 top-1. Layers L−1 and L−2 are the 23rd and 22nd; tokens are dropped at blocks 0, 8 and 16.
# CLIP gets the image at 196 px, so that both have 14 × 14 tokens. Warm-up is 5 % of the run, as for ViT-B (our choice).
_base_ = [
    '../_base_/models/hybrid_vit-base-p16.py', '../_base_/datasets/in21k_pretrain_224.py',
    '../_base_/schedules/pretrain_bs1024_300e.py', '../_base_/runtime.py']

model = dict(
    backbone=dict(arch='l'),
    masking=dict(at=(0, 8, 16)),
    teachers=dict(
        mim=dict(arch='l', checkpoint='checkpoints/mae_pretrain_vit_large.pth'),
        semantic=dict(
            _delete_=True, type='CLIPTeacher', arch='l', patch_size=14, img_size=196,
            checkpoint='checkpoints/ViT-L-14.pt')))
train_dataloader = dict(batch_size=128)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=2, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=2, end=40, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=40)
