# Three stages: the paper's default for detection and segmentation.
_base_ = 'dbot_vit-large-p16_8xb512-2x800e_in1k.py'

model = dict(teachers=dict(boot=dict(stages=3)))
train_cfg = dict(max_epochs=2400)
