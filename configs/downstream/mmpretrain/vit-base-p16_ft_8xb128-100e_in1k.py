# End-to-end fine-tuning on ImageNet-1K, on mmpretrain's own recipe for MAE: mean of patch tokens → new LayerNorm →
# linear layer, RandAugment 9/0.5, mixup 0.8, cutmix 1.0, erasing 0.25, label smoothing 0.1, batch 1024, warm-up 5 of
# 100 epochs. The method's config sets checkpoint, rate, layer decay and drop path.
_base_ = ['mmpretrain::mae/benchmarks/vit-base-p16_8xb128-coslr-100e_in1k.py', '../../_base_/run.py']

model = dict(
    backbone=dict(
        _delete_=True, type='mkd_plugin.ClassifierViT', arch='b', img_size=224, patch_size=16, drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone.')))
optim_wrapper = dict(
    constructor='mkd_plugin.LayerDecayConstructor', paramwise_cfg=dict(_delete_=True, layer_decay_rate=0.65))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    # mmpretrain's eta_min=1e-6 would *raise* the lowest layers' rates at the end; the recipe scales the minimum rate by
    # layer
    dict(
        type='CosineAnnealingLR', eta_min_ratio=1e-6 / 2e-3, by_epoch=True, begin=5, end=100, convert_to_iter_based=True),
]
default_hooks, visualizer = _base_.run_hooks, _base_.run_visualizer
