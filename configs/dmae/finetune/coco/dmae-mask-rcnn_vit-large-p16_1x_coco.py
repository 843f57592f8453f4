# DMAE with Hybrid Distill's recipe (our choice). The paper has no ViT-L student, so no config trains one. Use your own:
# --cfg-options model.backbone.init_cfg.checkpoint=FILE
_base_ = '../../../downstream/mmdet/vit-large-p16_mask-rcnn_1x_coco.py'
