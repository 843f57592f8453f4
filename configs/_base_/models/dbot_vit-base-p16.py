# dBOT with ViT-B/16: Table A1, default column, following the reference code where it differs (configs/dbot/README.md).
model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(type='VisibleViT', arch='b', patch_size=16, drop_path_rate=0.2),
    masking=dict(type='RandomMasking', ratio=0.75),
    teachers=dict(boot=dict(type='BootstrappedTeacher', start='student')),
    objectives=dict(
        feature=dict(
            teacher='boot', tap='block:-1', normalize=dict(type='TokenStandardize', unbiased=True, eps=1e-6),
            student='output',
            head=dict(type='TransformerDecoder', depth=8, width=512, num_heads=16, drop_path_rate=0.2),
            loss=dict(type='SmoothL1Loss', beta=2.0), region='hidden+cls')))
