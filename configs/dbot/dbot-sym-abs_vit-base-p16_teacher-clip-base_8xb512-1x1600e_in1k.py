# dBOT, symmetric, ViT-B/16 from CLIP, with absolute positions instead of the shared relative bias: the network of its
# COCO models. Learned positions, as in BEiT, are our choice.
_base_ = 'dbot-sym_vit-base-p16_teacher-clip-base_8xb512-1x1600e_in1k.py'

model = dict(backbone=dict(position='learned', relative_position=None))
