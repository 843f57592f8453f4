# MaskDistill: layer decay 0.85, linear decay, warm-up 1500, drop path 0.2; rate 1e-4, our choice from {0.5, 0.8, 1.0,
# 1.5}e-4. A relative bias per block, initialised from the shared table; no absolute positions. Minimum rate 0, weight
# decay, head, augmentation and windows follow dBOT's reference code (our choice).
_base_ = '../../../downstream/mmseg/vit-large-p16_upernet_160k_ade20k-512.py'

model = dict(
    backbone=dict(
        drop_path_rate=0.2, position='none', layer_scale=1e-5,
        init_cfg=dict(checkpoint='work_dirs/maskdistill_vit-large-p16_8xb256-800e_in1k/epoch_800.pth', allow_missing=[])))
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(layer_decay_rate=0.85))
