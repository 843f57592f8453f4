# Hybrid Distill: rate 4e-4 at batch 16, weight decay 0.05, 160k iterations; the paper follows CAE in the rest, we
# follow dBOT's reference code (our choice): a new relative bias and layer scale in addition to the absolute positions,
# layer decay 0.65, drop path 0.2.
_base_ = '../../../downstream/mmseg/vit-base-p16_upernet_160k_ade20k-512.py'

model = dict(backbone=dict(init_cfg=dict(checkpoint='work_dirs/hybrid_vit-base-p16_mae-deit_8xb128-300e_in1k/epoch_300.pth')))
optim_wrapper = dict(optimizer=dict(lr=4e-4))
