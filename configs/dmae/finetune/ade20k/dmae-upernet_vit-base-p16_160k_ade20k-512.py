# DMAE with the recipe of dBOT's reference code (our choice).
_base_ = '../../../downstream/mmseg/vit-base-p16_upernet_160k_ade20k-512.py'

model = dict(
    backbone=dict(
        init_cfg=dict(checkpoint='work_dirs/dmae_vit-base-p16_teacher-vit-large_8xb512-100e_in1k/epoch_100.pth')))
