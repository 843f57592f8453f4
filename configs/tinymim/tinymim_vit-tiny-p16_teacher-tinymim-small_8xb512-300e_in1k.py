# TinyMIM, ViT-Ti/16 from the TinyMIM ViT-S: the reference code's tiny student has 6 heads. The heads of the relations are the
# teacher's 6; the reference code fixes 12 there, which its ViT-S teacher does not have.
_base_ = 'tinymim_vit-small-p16_teacher-tinymim-base_8xb512-300e_in1k.py'

model = dict(
    backbone=dict(arch=dict(_delete_=True, width=192, depth=12, num_heads=6)),
    teachers=dict(
        mae=dict(
            arch='s',
            checkpoint='work_dirs/tinymim_vit-small-p16_teacher-tinymim-base_8xb512-300e_in1k/epoch_300.pth')))
