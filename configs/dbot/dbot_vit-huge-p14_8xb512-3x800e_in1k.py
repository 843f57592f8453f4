# Three stages: the paper's choice when the student goes to detection or segmentation.
_base_ = 'dbot_vit-huge-p14_8xb512-2x800e_in1k.py'

custom_hooks = [dict(type='mkd_plugin.StageHook', lengths=[800, 800, 800])]
train_cfg = dict(max_epochs=2400)
