# dBOT's reference code: rate 3e-5, layer decay 0.95, drop path 0.2. Table A4 sweeps rates of {0.3, 0.5, 0.8, 1, 3}e-4 and layer
# decays of {0.65, 0.75, 0.85, 0.95}. From the third stage.
_base_ = '../../../downstream/mmseg/vit-large-p16_upernet_160k_ade20k-512.py'

model = dict(backbone=dict(init_cfg=dict(checkpoint='work_dirs/dbot_vit-large-p16_8xb512-3x800e_in1k/stage_3.pth')))
