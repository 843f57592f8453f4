# TinyMIM, ViT-B/16 from MAE's ViT-L: the relations Q·Kᵀ and V·Vᵀ of block 18 of 24 (from 1) are the targets of those of the
# student's last block, whose channels are split into the teacher's 16 heads. Nothing is hidden. The teacher sees the crop, the
# student the crop with colour jitter.
# The rest of the student's last block and the final norm are read by no loss and stay as initialised, as in the reference
# code, which has drop path 0.1 in every block but the last.
_base_ = [
    '../_base_/datasets/in1k_pretrain_224_two_views.py', '../_base_/schedules/pretrain_bs4096_300e.py',
    '../_base_/runtime.py']

relation = dict(
    teacher='mae', head=dict(type='RegroupedRelations'), loss=dict(type='RelationKL'), region='all+cls', weight=1.0)
model = dict(
    type='mkd_plugin.MaskedDistiller',
    two_views=True,
    backbone=dict(type='VisibleViT', arch='b', patch_size=16, drop_path_rate=(0.1,) * 11 + (0.0,)),
    masking=dict(type='NoMasking'),
    teachers=dict(
        mae=dict(type='ViTTeacher', arch='l', patch_size=16, checkpoint='checkpoints/mae_pretrain_vit_large.pth')),
    objectives=dict(
        qk=dict(tap='logit:17', student='logit:-1', **relation),
        vv=dict(tap='value:17', student='value:-1', **relation)))
find_unused_parameters = True
