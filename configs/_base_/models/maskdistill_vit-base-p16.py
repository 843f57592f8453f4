# MaskDistill with ViT-B/16 and CLIP's ViT-B/16. Our choices where the paper gives no details: tokens are projected to
# 512 channels, as in the same authors' BEiT v2 (the alternative is `tap='output'`), and beta is 1.0. Positions follow
# §4, BEiT's relative bias (§3 mentions learnable positions). Eq. 3 averages over each image's hidden patches and then over
# images; here, as in BEiT and dBOT's code, the mean is over all hidden patches of the batch.
model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(
        type='MaskTokenViT', arch='b', patch_size=16, drop_path_rate=0.1, position='none', relative_position='shared',
        layer_scale=0.1),
    masking=dict(type='BlockMasking', ratio=0.4),
    teachers=dict(teacher=dict(type='CLIPTeacher', arch='b', patch_size=16, checkpoint='checkpoints/ViT-B-16.pt')),
    objectives=dict(
        feature=dict(
            teacher='teacher', tap='projected', normalize=dict(type='TokenStandardize', unbiased=False, eps=1e-5),
            student='output', head=dict(type='LinearHead'), loss=dict(type='SmoothL1Loss', beta=1.0), region='hidden')))
