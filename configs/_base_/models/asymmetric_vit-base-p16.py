# MAE's student: an encoder of the visible patches, with 75 % of the patches hidden at random.
model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(type='VisibleViT', arch='b', patch_size=16),
    masking=dict(type='RandomMasking', ratio=0.75))
