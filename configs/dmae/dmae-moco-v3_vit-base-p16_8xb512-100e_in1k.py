# MoCo v3 instead of MAE as the aligned teacher, block 9 with block 9 of 12; the student keeps MAE's masking, decoder
# and pixels. The paper has 82.5 for "MoCo v3 as the base framework". If the paper also used MoCo v3's loss for the
# student, this is a different experiment. Alignment: ★ reference code, both sides L2-normalised.
_base_ = 'dmae_vit-base-p16_teacher-vit-large_8xb512-100e_in1k.py'

model = dict(
    teachers=dict(
        _delete_=True,
        pixel=dict(type='PixelTeacher'),
        moco=dict(
            type='ViTTeacher', arch='b', patch_size=16, sees='visible',
            checkpoint='checkpoints/vit-b-300ep.pth.tar', prefix='module.base_encoder.')),
    objectives=dict(feature=dict(teacher='moco', tap='block:8')))
