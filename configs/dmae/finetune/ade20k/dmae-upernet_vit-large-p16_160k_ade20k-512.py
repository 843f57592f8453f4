# DMAE with the recipe of dBOT's reference code (our choice). The paper has no ViT-L student, so no config trains one.
# Use your own: --cfg-options model.backbone.init_cfg.checkpoint=FILE
_base_ = '../../../downstream/mmseg/vit-large-p16_upernet_160k_ade20k-512.py'
