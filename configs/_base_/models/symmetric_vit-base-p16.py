# The student of most rows of the unified view: BEiT's ViT with mask tokens, shared relative position bias, layer scale
# 0.1, no absolute positions; block-wise masking of at most 78 of 196 patches (MaskDistill's student).
model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(
        type='MaskTokenViT', arch='b', patch_size=16, position='none', relative_position='shared', layer_scale=0.1,
        drop_path_rate=0.1),
    masking=dict(type='BlockMasking', num_hidden=78))
