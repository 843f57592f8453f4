# MaskDistill with Hybrid Distill's Mask R-CNN recipe (our choice; the paper has no COCO results). A relative bias per
# block, initialised from the shared table and resized to every image, no absolute positions, layer scale 1e-5.
_base_ = '../../../downstream/mmdet/vit-large-p16_mask-rcnn_1x_coco.py'

model = dict(
    backbone=dict(
        position='none', relative_position='per_block', layer_scale=1e-5,
        init_cfg=dict(checkpoint='work_dirs/maskdistill_vit-large-p16_8xb256-800e_in1k/epoch_800.pth')))
