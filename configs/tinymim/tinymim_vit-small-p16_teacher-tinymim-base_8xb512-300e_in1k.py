# TinyMIM, ViT-S/16 from the TinyMIM ViT-B: block 12 of 12, 12 heads as in the reference code.
_base_ = 'tinymim_vit-base-p16_teacher-mae-large_8xb512-300e_in1k.py'

model = dict(
    backbone=dict(arch='s'),
    teachers=dict(
        mae=dict(
            arch='b',
            checkpoint='work_dirs/tinymim_vit-base-p16_teacher-mae-large_8xb512-300e_in1k/epoch_300.pth')),
    objectives=dict(qk=dict(tap='logit:-1'), vv=dict(tap='value:-1')))
