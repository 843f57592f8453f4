# dBOT, ViT-B/16, on your own images: `--cfg-options data_root=DIR`. Otherwise identical to
# dbot_vit-base-p16_8xb512-2x800e_in1k; adapt the number of epochs if you have many more or fewer than ImageNet's 1.28
# million images.
_base_ = [
    '../_base_/models/dbot_vit-base-p16.py', '../_base_/datasets/folder_pretrain_224.py',
    '../_base_/schedules/pretrain_bs4096_800e.py', '../_base_/runtime.py']

model = dict(teachers=dict(boot=dict(stages=2)))
train_cfg = dict(max_epochs=1600)
optim_wrapper = dict(clip_grad=dict(max_norm=3.0))
