# Mask R-CNN on COCO, 1x, on mmdet's own model: Hybrid Distill's recipe. The paper gives the rate, 3e-4 for ViT-B,
# and follows CAE in the rest. Here the rest is taken from vit-base-p16_cascade-mask-rcnn_1x_coco.py (our choice:
# augmentation, layer decay 0.75, drop path 0.2, weight decay, taps, strides, positions), with mmdet's own box and mask
# heads. The method's config sets the checkpoint.
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py', '../../_base_/datasets/coco_instance_multi_scale.py',
    '../../_base_/schedules/coco_adamw_1x.py', 'mmdet::_base_/default_runtime.py', '../../_base_/run.py']

model = dict(
    backbone=dict(
        _delete_=True, type='mkd_plugin.DenseViT', arch='b', img_size=224, patch_size=16, out_indices=(3, 5, 7, 11),
        drop_path_rate=0.2, init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone.')),
    neck=[
        dict(type='mkd_plugin.ScalePyramid', in_channels=768, norm_cfg=dict(type='SyncBN')),
        dict(_base_.model.neck, in_channels=[768] * 4),
    ])
optim_wrapper = dict(optimizer=dict(lr=3e-4))
default_hooks, visualizer = _base_.run_hooks, _base_.run_visualizer
