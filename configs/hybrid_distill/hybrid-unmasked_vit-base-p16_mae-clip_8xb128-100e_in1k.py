# Like hybrid-unmasked_vit-base-p16_mae-deit_8xb128-100e_in1k.py, with CLIP instead of DeiT.
_base_ = 'hybrid-unmasked_vit-base-p16_mae-deit_8xb128-100e_in1k.py'

model = dict(
    teachers=dict(
        semantic=dict(_delete_=True, type='CLIPTeacher', arch='b', patch_size=16, checkpoint='checkpoints/ViT-B-16.pt')))
