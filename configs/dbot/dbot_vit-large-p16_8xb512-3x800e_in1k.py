# dBOT, ViT-L/16, 3 stages. Teacher 0 has depth 0 (patch embedding, position and cls only), as in the reference code for L.
# Table A1 gives no gradient clip for L.
_base_ = 'dbot_vit-base-p16_8xb512-3x800e_in1k.py'

model = dict(backbone=dict(arch='l'), teachers=dict(boot=dict(start_depth=0)))
optim_wrapper = dict(clip_grad=None)
