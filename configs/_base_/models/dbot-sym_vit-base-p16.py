# dBOT's symmetric variant: Table A1's column for data-rich teachers and the reference code's second branch. It has mask
# tokens in the encoder, a linear head, shared relative bias and no absolute embedding, layer scale 0.1 at all sizes,
# negative cosine on hidden patches. CLIP's tokens are projected. A ratio of 0.4 is at most 78 of 196 patches.
model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(
        type='MaskTokenViT', arch='b', patch_size=16, drop_path_rate=0.1, position='none', relative_position='shared',
        layer_scale=0.1),
    masking=dict(type='BlockMasking', ratio=0.4),
    teachers=dict(teacher=dict(type='CLIPTeacher', arch='b', patch_size=16, checkpoint='checkpoints/ViT-B-16.pt')),
    objectives=dict(
        feature=dict(
            teacher='teacher', tap='projected', student='output', head=dict(type='LinearHead'),
            loss=dict(type='CosineLoss'), region='hidden')))
