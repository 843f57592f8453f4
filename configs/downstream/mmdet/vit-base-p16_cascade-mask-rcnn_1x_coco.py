# Cascade Mask R-CNN on COCO, 1x, on mmdet's own model, data and schedule: dBOT's recipe (Table A3 and its reference
# code). ViT features after blocks 4, 6, 8 and 12, without final norm and cls, resampled to strides 4, 8, 16, 32; three
# box heads of four convolutions and a linear layer with SyncBN, boxes for every class, GIoU (weight 10) on decoded
# boxes. Absolute positions, interpolated for every image. The method's config sets the checkpoint and its own changes.
_base_ = [
    'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py', '../../_base_/datasets/coco_instance_multi_scale.py',
    '../../_base_/schedules/coco_adamw_1x.py', 'mmdet::_base_/default_runtime.py', '../../_base_/run.py']

box_head = dict(
    type='ConvFCBBoxHead', num_shared_convs=4, num_shared_fcs=1, conv_out_channels=256, norm_cfg=dict(type='SyncBN'),
    reg_class_agnostic=False, reg_decoded_bbox=True, loss_bbox=dict(type='GIoULoss', loss_weight=10.0))
model = dict(
    backbone=dict(
        _delete_=True, type='mkd_plugin.DenseViT', arch='b', img_size=224, patch_size=16, out_indices=(3, 5, 7, 11),
        drop_path_rate=0.2, init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone.')),
    neck=[
        dict(type='mkd_plugin.ScalePyramid', in_channels=768, norm_cfg=dict(type='SyncBN')),
        dict(_base_.model.neck, in_channels=[768] * 4),
    ],
    roi_head=dict(bbox_head=[dict(head, **box_head) for head in _base_.model.roi_head.bbox_head]))
default_hooks, visualizer = _base_.run_hooks, _base_.run_visualizer
