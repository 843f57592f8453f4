# ViT-H at 448 px, from the checkpoint fine-tuned at 224 px: 10 epochs, warm-up 2, base rate 7e-5 per 256 images (2.8e-4
# at 1024), layer decay 0.9, drop path 0.4 (dBOT's reference code). The position table is resized on loading; the head
# is loaded from the checkpoint too.
_base_ = ['mmpretrain::mae/benchmarks/vit-huge-p14_32xb8-coslr-50e_in1k-448px.py', '../../../_base_/run.py']

checkpoint = 'work_dirs/dbot-ft_vit-huge-p14_8xb128-50e_in1k/epoch_50.pth'
model = dict(
    backbone=dict(
        _delete_=True, type='mkd_plugin.ClassifierViT', arch='h', img_size=448, patch_size=14, drop_path_rate=0.4,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.')),
    head=dict(init_cfg=[dict(type='Pretrained', checkpoint=checkpoint, prefix='head.')]))
optim_wrapper = dict(optimizer=dict(lr=7e-5 * 1024 / 256), paramwise_cfg=dict(layer_decay_rate=0.9))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=2, convert_to_iter_based=True),
    # a ratio, so that layer decay also scales the minimum rate of 1e-6
    dict(type='CosineAnnealingLR', eta_min_ratio=1e-6 / 2.8e-4, by_epoch=True, begin=2, end=10, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=10)
default_hooks, visualizer = _base_.run_hooks, _base_.run_visualizer
