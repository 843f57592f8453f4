# UperNet on digit scenes, from scratch: mmseg's own model, small enough to train on a CPU in minutes. Patches of 8
# pixels give strides 2, 4, 8, 16. GN replaces SyncBN, which does not run on a CPU. In the test an image is padded to
# whole patches, and the padding is removed from the prediction. The configs of the methods add a checkpoint with its
# learning rate and layer decay.
_base_ = [
    'mmseg::_base_/models/upernet_r50.py', '../../_base_/datasets/digit_scenes_segmentation.py',
    '../../_base_/schedules/digit_scenes_800.py', 'mmseg::_base_/default_runtime.py', '../../_base_/run.py']

width, channels, norm_cfg, max_iters = 96, 32, dict(type='GN', num_groups=8), 2500
loss = dict(class_weight=[0.1] + [1.0] * 10)  # six of seven pixels are background
data_preprocessor = dict(
    mean=[60, 60, 60], std=[48, 48, 48], size=(96, 96), test_cfg=dict(size_divisor=16),
    seg_pad_val=0)  # background instead of mmseg's 255, which upstream's mmseg would look up in class_weight
model = dict(
    data_preprocessor=data_preprocessor,
    pretrained=None,
    backbone=dict(
        _delete_=True, type='mkd_plugin.DenseViT', arch=dict(width=width, depth=6, num_heads=4), img_size=80, patch_size=8,
        out_indices=(1, 2, 3, 5), drop_path_rate=0.1),
    neck=dict(type='mkd_plugin.ScalePyramid', in_channels=width, norm_cfg=norm_cfg),
    decode_head=dict(
        in_channels=[width] * 4, channels=channels, num_classes=11, norm_cfg=dict(_delete_=True, **norm_cfg),
        loss_decode=loss),
    auxiliary_head=dict(
        in_channels=width, channels=channels, num_classes=11, norm_cfg=dict(_delete_=True, **norm_cfg),
        loss_decode=loss))
optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], end=max_iters)]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(  # mmseg's default runtime has none; these use mmseg's logger and visualiser
    _base_.run_hooks,
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    visualization=dict(type='SegVisualizationHook'),
    checkpoint=dict(type='mkd_plugin.AtomicCheckpointHook', by_epoch=False, interval=500, max_keep_ckpts=1))
visualizer = _base_.run_visualizer
randomness = dict(seed=0)
