# As the paper words it: relative positions are added for images of varying size. A relative bias per block, trained from
# scratch on top of the interpolated absolute positions; that it is the attention's bias and starts from zero is our choice.
_base_ = 'dbot-cascade_vit-base-p16_1x_coco.py'

model = dict(backbone=dict(relative_position='per_block', init_cfg=dict(allow_missing=['*.rel_pos_bias.*'])))
