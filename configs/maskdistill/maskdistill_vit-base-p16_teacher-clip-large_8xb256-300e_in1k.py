# ViT-B/16 from CLIP-L/14, which gets the image at 196 px so that both have 14 × 14 tokens: 85.3 top-1, 54.3 mIoU,
# with 300 epochs (Table 3).
_base_ = 'maskdistill_vit-base-p16_8xb256-300e_in1k.py'

model = dict(teachers=dict(teacher=dict(arch='l', patch_size=14, img_size=196, checkpoint='checkpoints/ViT-L-14.pt')))
