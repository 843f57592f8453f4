# dBOT, ViT-H/14, 2 stages: drop path 0.3, teacher 0 of depth 0. Table A1 gives no gradient clip for H.
_base_ = 'dbot_vit-base-p16_8xb512-2x800e_in1k.py'

model = dict(
    backbone=dict(arch='h', patch_size=14, drop_path_rate=0.3),
    teachers=dict(boot=dict(start_depth=0)),
    objectives=dict(feature=dict(head=dict(drop_path_rate=0.3))))
optim_wrapper = dict(clip_grad=None)
