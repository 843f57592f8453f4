# dBOT, symmetric, ViT-L/16 from CLIP, with absolute positions instead of the shared relative bias: the network of its
# COCO models. Learned positions, as in BEiT, are our choice.
_base_ = 'dbot-sym_vit-large-p16_teacher-clip-large_8xb512-1x1600e_in1k.py'

model = dict(backbone=dict(position='learned', relative_position=None))
