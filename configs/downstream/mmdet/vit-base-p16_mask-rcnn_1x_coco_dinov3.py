# Mask R-CNN on COCO, 1x, from DINOv3's ViT-B/16: its authors' file, or timm's of vit_base_patch16_dinov3(_qkvb). Its
# rotary positions are computed for every image; four registers and no table. Rates and augmentation are those of the base
# (our choice). Set the file: --cfg-options model.backbone.init_cfg.checkpoint=FILE. Its weights have a licence of their own.
_base_ = 'vit-base-p16_mask-rcnn_1x_coco.py'

model = dict(
    backbone=dict(
        position='none', rope='dinov3', layer_scale=1e-5, num_registers=4, norm_eps=1e-5,
        init_cfg=dict(_delete_=True, type='Pretrained', checkpoint='')))
