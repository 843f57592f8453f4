# DINO instead of MAE as the aligned teacher, block 9 with block 9 of 12; the student keeps MAE's masking, decoder and
# pixels. The paper has 82.2 for "DINO as the base framework". If the paper also used DINO's loss for the student, this
# is a different experiment. Alignment: ★ reference code, both sides L2-normalised.
_base_ = 'dmae_vit-base-p16_teacher-vit-large_8xb512-100e_in1k.py'

model = dict(
    teachers=dict(
        _delete_=True,
        pixel=dict(type='PixelTeacher'),
        dino=dict(
            type='ViTTeacher', arch='b', patch_size=16, network=dict(position='learned'), sees='visible',
            checkpoint='checkpoints/dino_vitbase16_pretrain.pth')),
    objectives=dict(feature=dict(teacher='dino', tap='block:8')))
