# SimMIM: raw pixels, one linear layer, L1; 60 % hidden in units of 32 × 32 pixels (mmpretrain's configs/simmim). The
# table's student is a Swin; this row uses ViT-B, which SimMIM's paper trains too. Otherwise as in every row here:
# ViT-B/16, MaskDistill's schedule of 300 epochs.
_base_ = [
    '../_base_/models/symmetric_vit-base-p16.py', '../_base_/datasets/in1k_pretrain_224.py',
    '../_base_/schedules/pretrain_bs2048_300e.py', '../_base_/runtime.py']

model = dict(
    masking=dict(_delete_=True, type='RandomMasking', ratio=0.6, unit=2),
    teachers=dict(pixel=dict(type='PixelTeacher')),
    objectives=dict(
        pixel=dict(
            teacher='pixel', tap='output', student='output', head=dict(type='LinearHead'), loss=dict(type='L1Loss'),
            region='hidden')))
train_dataloader = dict(batch_size=256)
