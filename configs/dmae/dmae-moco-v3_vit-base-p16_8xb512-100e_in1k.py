# MoCo v3 instead of MAE as the aligned teacher, block 9 with block 9 of 12; the student keeps MAE's masking, decoder
# and pixels. This is not the paper's experiment: Sec. 4.8 (82.5) integrates the alignment into MoCo v3 itself, whose
# loss is not here. Alignment: ★ reference code, both sides L2-normalised.
_base_ = 'dmae_vit-base-p16_teacher-vit-large_8xb512-100e_in1k.py'

model = dict(
    teachers=dict(
        _delete_=True,
        pixel=dict(type='PixelTeacher'),
        moco=dict(
            type='ViTTeacher', arch='b', patch_size=16, sees='visible',
            checkpoint='checkpoints/vit-b-300ep.pth.tar', prefix='module.base_encoder.')),
    objectives=dict(feature=dict(teacher='moco', tap='block:8')))
