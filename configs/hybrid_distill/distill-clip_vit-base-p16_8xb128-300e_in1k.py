# Baseline Distill-CLIP: features of CLIP only (after ln_post, unprojected: our choice), no masking. 84.8 top-1, 49.5
# AP-box, 43.5 AP-mask, 50.3 mIoU.
_base_ = 'distill-deit_vit-base-p16_8xb128-300e_in1k.py'

model = dict(
    teachers=dict(
        semantic=dict(_delete_=True, type='CLIPTeacher', arch='b', patch_size=16, checkpoint='checkpoints/ViT-B-16.pt')))
