# Plain distillation of one teacher, on which Hybrid Distill builds: no masking, no decoder, the last layer's features.
# Our choices where the paper gives no details: features after the teacher's final norm; dBOT's standardisation and beta
# 2.0 (the authors built on its code); one linear head on the student; cls included; no drop path.
model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(type='VisibleViT', arch='b', patch_size=16),
    masking=dict(type='NoMasking'),
    teachers=dict(
        semantic=dict(
            type='ViTTeacher', arch='b', patch_size=16, network=dict(position='learned'),
            checkpoint='checkpoints/deit_base_patch16_224-b5f2ef4d.pth')),
    objectives=dict(
        feature=dict(
            teacher='semantic', tap='output', normalize=dict(type='TokenStandardize', unbiased=True, eps=1e-6),
            student='output', head=dict(type='LinearHead'),
            loss=dict(type='SmoothL1Loss', beta=2.0), region='visible+cls')))
