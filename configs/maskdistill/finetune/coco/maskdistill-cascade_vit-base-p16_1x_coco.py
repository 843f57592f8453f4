# MaskDistill with dBOT's Cascade Mask R-CNN recipe (our choice; the paper has no COCO results). A relative bias per
# block, initialised from the shared table and resized to every image, no absolute positions, layer scale 0.1.
_base_ = '../../../downstream/mmdet/vit-base-p16_cascade-mask-rcnn_1x_coco.py'

model = dict(
    backbone=dict(
        position='none', relative_position='per_block', layer_scale=0.1,
        init_cfg=dict(checkpoint='work_dirs/maskdistill_vit-base-p16_8xb256-300e_in1k/epoch_300.pth')))
