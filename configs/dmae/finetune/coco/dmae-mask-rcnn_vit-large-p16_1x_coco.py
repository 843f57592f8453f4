# DMAE under Hybrid Distill's recipe, which is our choice.
# The paper has no ViT-L student, so no config here trains one: give the file of your own, --cfg-options
# model.backbone.init_cfg.checkpoint=FILE
_base_ = '../../../downstream/mmdet/vit-large-p16_mask-rcnn_1x_coco.py'
