# Hybrid Distill: rate 4e-4 at batch 16, weight decay 0.05, 160k iterations; the paper follows CAE in the rest, we
# follow dBOT's reference code (our choice), except for layer decay: 0.75, because dBOT's 0.95 belongs to a rate of 3e-5.
_base_ = '../../../downstream/mmseg/vit-large-p16_upernet_160k_ade20k-512.py'

model = dict(backbone=dict(init_cfg=dict(checkpoint='work_dirs/hybrid_vit-large-p16_mae-clip_8xb128-40e_in21k/epoch_40.pth')))
optim_wrapper = dict(optimizer=dict(lr=4e-4), paramwise_cfg=dict(layer_decay_rate=0.75))
