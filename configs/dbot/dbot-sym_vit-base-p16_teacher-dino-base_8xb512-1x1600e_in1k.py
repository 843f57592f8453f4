# dBOT, symmetric, ViT-B/16 from DINO's ViT-B/16 (84.8 top-1). The target is taken after the teacher's final norm (Table
# A1).
_base_ = 'dbot-sym_vit-base-p16_teacher-clip-base_8xb512-1x1600e_in1k.py'

model = dict(
    teachers=dict(
        teacher=dict(
            _delete_=True, type='ViTTeacher', arch='b', patch_size=16, network=dict(position='learned'),
            checkpoint='checkpoints/dino_vitbase16_pretrain.pth')),
    objectives=dict(feature=dict(tap='output')))
