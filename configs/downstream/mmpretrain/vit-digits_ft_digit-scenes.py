# Classification of the boxes in scenes of digits, from scratch: mean of patch tokens → new LayerNorm → linear, with the
# network of the detector and segmentor. The configs of the methods add a checkpoint with its learning rate and layer
# decay.
_base_ = [
    '../../_base_/datasets/digit_scenes_classification.py', '../../_base_/schedules/digit_scenes_800.py',
    'mmpretrain::_base_/default_runtime.py', '../../_base_/run.py']

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mkd_plugin.ClassifierViT', arch=dict(width=96, depth=6, num_heads=4), img_size=48, patch_size=8,
        drop_path_rate=0.1),
    head=dict(
        type='LinearClsHead', num_classes=10, in_channels=96,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.01)))
default_hooks = dict(_base_.run_hooks, checkpoint=dict(
    type='mkd_plugin.AtomicCheckpointHook', by_epoch=False, interval=500, max_keep_ckpts=1))
visualizer = _base_.run_visualizer
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
