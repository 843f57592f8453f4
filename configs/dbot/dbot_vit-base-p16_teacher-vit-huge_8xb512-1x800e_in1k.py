# A larger teacher with another patch size: a ViT-H/14, which gets the image at 196 px so that both have 14 × 14 tokens
# (84.6 top-1, 53.5 AP-box, 50.8 mIoU). The position table of a teacher trained at 224 px is resized.
_base_ = 'dbot_vit-base-p16_teacher-vit-large_8xb512-1x800e_in1k.py'

model = dict(
    teachers=dict(
        boot=dict(
            arch='h', patch_size=14, img_size=196,
            checkpoint='work_dirs/dbot_vit-huge-p14_8xb512-2x800e_in1k/stage_2.pth')))
