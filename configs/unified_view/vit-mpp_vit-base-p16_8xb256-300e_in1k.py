# Masked patch prediction (ViT, appendix): pixels, one linear layer. ViT classified each hidden patch's mean colour into
# 512 bins and hid half of the patches; this row regresses its pixels, as the table's dashes leave open. Otherwise as in
# every row here: ViT-B/16, MaskDistill's schedule of 300 epochs.
_base_ = [
    '../_base_/models/symmetric_vit-base-p16.py', '../_base_/datasets/in1k_pretrain_224.py',
    '../_base_/schedules/pretrain_bs2048_300e.py', '../_base_/runtime.py']

model = dict(
    masking=dict(_delete_=True, type='RandomMasking', ratio=0.5),
    teachers=dict(pixel=dict(type='PixelTeacher')),
    objectives=dict(
        pixel=dict(
            teacher='pixel', tap='output', student='output', head=dict(type='LinearHead'), loss=dict(type='MSELoss'),
            region='hidden')))
train_dataloader = dict(batch_size=256)
