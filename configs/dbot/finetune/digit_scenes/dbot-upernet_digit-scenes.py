# UperNet on digit scenes from dBOT's second student.
_base_ = '../../../downstream/mmseg/vit-digits_upernet_digit-scenes.py'

model = dict(
    backbone=dict(
        init_cfg=dict(type='Pretrained', checkpoint='work_dirs/dbot_digit-scenes/stage_2.pth', prefix='backbone.')))
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.85))
