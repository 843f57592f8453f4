# dBOT, ViT-B/16, two stages of 800 epochs: the paper's default for classification (84.5 top-1).
_base_ = [
    '../_base_/models/dbot_vit-base-p16.py', '../_base_/datasets/in1k_pretrain_224.py',
    '../_base_/schedules/pretrain_bs4096_800e.py', '../_base_/runtime.py']

model = dict(teachers=dict(boot=dict(stages=2)))
train_cfg = dict(max_epochs=1600)
optim_wrapper = dict(clip_grad=dict(max_norm=3.0))
