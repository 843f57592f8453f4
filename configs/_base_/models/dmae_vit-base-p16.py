# DMAE with ViT-B/16 and MAE's ViT-L/16: MAE's student, decoder and pixels, and block ¾ · depth (9th of 12) aligned with
# the teacher's (18th of 24). The teacher sees the student's visible patches only and runs up to that block.
# ★ reference code: both sides of the alignment are L2-normalised over channels (paper: raw); pixels are not normalised.
# ★ paper: two-layer projector (reference script: one linear layer). Everything else is the same in both.
model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(type='VisibleViT', arch='b', patch_size=16),
    masking=dict(type='RandomMasking', ratio=0.75),
    teachers=dict(
        pixel=dict(type='PixelTeacher'),
        mae=dict(
            type='ViTTeacher', arch='l', patch_size=16, sees='visible',
            checkpoint='checkpoints/mae_vit-large-p16_raw-pixels.pth')),  # the script's teacher, trained on raw pixels
    objectives=dict(
        pixel=dict(
            teacher='pixel', tap='output', student='output',
            head=dict(type='TransformerDecoder', depth=8, width=512, num_heads=16),
            loss=dict(type='MSELoss'), region='hidden'),
        feature=dict(
            teacher='mae', tap='block:17', normalize=dict(type='L2Normalize'), normalize_prediction=True,
            student='block:8', head=dict(type='ProjectorHead', num_layers=2),
            loss=dict(type='L1Loss'), region='visible+cls', weight=1.0)))
