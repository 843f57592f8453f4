# Mask R-CNN with ViTDet's plain backbone: attention within windows of 14 × 14 patches except in blocks 3, 6, 9 and 12,
# no cls, and the simple feature pyramid from the last map. Everything else is as in vit-base-p16_mask-rcnn_1x_coco.py,
# including the 1x schedule (our choice: ViTDet itself trains for 100 epochs on crops of 1024 pixels). A checkpoint's
# cls token is not used.
_base_ = 'vit-base-p16_mask-rcnn_1x_coco.py'

model = dict(
    backbone=dict(out_indices=(11, ), window_size=14, global_blocks=(2, 5, 8, 11)),
    neck=dict(_delete_=True, type='mkd_plugin.SimplePyramid', in_channels=768, out_channels=256, num_outs=5))
