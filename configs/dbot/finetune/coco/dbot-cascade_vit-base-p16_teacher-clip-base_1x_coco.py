# The CLIP-distilled student (53.6 AP-box, published), whose COCO models have absolute positions instead of the relative
# bias. Fine-tuning it with Table A3's settings, like the others, is our choice.
_base_ = 'dbot-cascade_vit-base-p16_1x_coco.py'

model = dict(
    backbone=dict(
        layer_scale=0.1,
        init_cfg=dict(checkpoint='work_dirs/dbot-sym-abs_vit-base-p16_teacher-clip-base_8xb512-1x1600e_in1k/epoch_1600.pth')))
