# Cascade Mask R-CNN on digit scenes, from scratch: mmdet's own model, small enough to train on a CPU in minutes.
# Patches of 8 pixels give strides 2, 4, 8, 16; anchors and the scales of the region extractors are divided accordingly.
# GN replaces SyncBN, which does not run on a CPU. The configs of the methods add a checkpoint with its learning rate
# and layer decay.
_base_ = [
    'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py', '../../_base_/datasets/digit_scenes_detection.py',
    '../../_base_/schedules/digit_scenes_800.py', 'mmdet::_base_/default_runtime.py', '../../_base_/run.py']

width, channels, strides = 96, 32, [2, 4, 8, 16]
regions = dict(out_channels=channels, featmap_strides=strides, finest_scale=14)
box_head = dict(in_channels=channels, fc_out_channels=128, num_classes=10)
model = dict(
    data_preprocessor=dict(mean=[60, 60, 60], std=[48, 48, 48], pad_size_divisor=16),
    backbone=dict(
        _delete_=True, type='mkd_plugin.DenseViT', arch=dict(width=width, depth=6, num_heads=4), img_size=80, patch_size=8,
        out_indices=(1, 2, 3, 5), drop_path_rate=0.1),
    neck=[
        dict(type='mkd_plugin.ScalePyramid', in_channels=width, norm_cfg=dict(type='GN', num_groups=8)),
        dict(_base_.model.neck, in_channels=[width] * 4, out_channels=channels, num_outs=4),
    ],
    rpn_head=dict(
        in_channels=channels, feat_channels=channels,
        anchor_generator=dict(scales=[5], ratios=[1.0, 2.0], strides=strides)),
    roi_head=dict(
        bbox_roi_extractor=regions, mask_roi_extractor=regions,
        bbox_head=[dict(head, **box_head) for head in _base_.model.roi_head.bbox_head],
        mask_head=dict(in_channels=channels, conv_out_channels=channels, num_convs=2, num_classes=10)),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=[dict(stage, sampler=dict(stage.sampler, num=48)) for stage in _base_.model.train_cfg.rcnn]),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100), rcnn=dict(max_per_img=30)))
default_hooks = dict(
    _base_.run_hooks,
    checkpoint=dict(type='mkd_plugin.AtomicCheckpointHook', by_epoch=False, interval=500, max_keep_ckpts=1))
visualizer = _base_.run_visualizer
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
