# RADIO-style distillation of DINOv3, SigLIP 2 and SAM into a ViT-L/16.
_base_ = 'radio_vit-base-p16_teachers-dinov3-siglip2-sam_8xb128-300e_in1k.py'

model = dict(backbone=dict(arch='l'))
