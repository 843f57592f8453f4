# Hybrid Distill, ViT-B/16 from MAE and CLIP, K = 30 % (inferred): 50.6 AP-box, 44.4 AP-mask, 51.5 mIoU, 85.1 top-1.
# CLIP's tokens are taken after ln_post, unprojected (our choice, as in FD).
_base_ = 'hybrid_vit-base-p16_mae-deit_8xb128-300e_in1k.py'

model = dict(
    teachers=dict(
        semantic=dict(_delete_=True, type='CLIPTeacher', arch='b', patch_size=16, checkpoint='checkpoints/ViT-B-16.pt')))
