# As for ViT-B, with features after blocks 8, 12, 16 and 24, head width 1024; rate 3e-5, layer decay 0.95 (dBOT's
# reference code, ViT-L).
_base_ = 'vit-base-p16_upernet_160k_ade20k-512.py'

model = dict(
    backbone=dict(arch='l', out_indices=(7, 11, 15, 23)),
    neck=dict(in_channels=1024),
    decode_head=dict(in_channels=[1024] * 4, channels=1024),
    auxiliary_head=dict(in_channels=1024))
optim_wrapper = dict(optimizer=dict(lr=3e-5), paramwise_cfg=dict(layer_decay_rate=0.95))
