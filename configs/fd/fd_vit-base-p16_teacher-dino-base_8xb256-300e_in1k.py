# FD of DINO's ViT-B/16.
_base_ = 'fd_vit-base-p16_teacher-clip-base_8xb256-300e_in1k.py'

model = dict(
    teachers=dict(
        teacher=dict(
            _delete_=True, type='ViTTeacher', arch='b', patch_size=16, network=dict(position='learned'),
            checkpoint='checkpoints/dino_vitbase16_pretrain.pth')))
