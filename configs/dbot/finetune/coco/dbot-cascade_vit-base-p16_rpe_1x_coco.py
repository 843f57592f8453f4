# Adds relative positions for images of varying size, as the paper describes: a relative position bias per block,
# trained from scratch in addition to the interpolated absolute positions. The form of the bias and its start at zero
# are our choice.
_base_ = 'dbot-cascade_vit-base-p16_1x_coco.py'

model = dict(backbone=dict(relative_position='per_block', init_cfg=dict(allow_missing=['*.rel_pos_bias.*'])))
