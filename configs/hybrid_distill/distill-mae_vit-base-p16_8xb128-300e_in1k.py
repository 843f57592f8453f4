# Baseline Distill-MAE: features of MAE only, no masking. 83.7 top-1, 49.1 AP-box, 43.1 AP-mask, 47.8 mIoU.
_base_ = 'distill-deit_vit-base-p16_8xb128-300e_in1k.py'

model = dict(
    teachers=dict(
        semantic=dict(
            _delete_=True, type='ViTTeacher', arch='b', patch_size=16, checkpoint='checkpoints/mae_pretrain_vit_base.pth')))
