# Gram anchoring (DINOv3): the refinement of a network that has been trained for long. The similarities between the patches of
# the masked image stay near those of an old copy of the moving average; weight 2, copied every 10k steps, three times.
# DINOv3 adds this to its DINO and iBOT losses, which need learned prototypes. Here it is added to data2vec's row of the unified
# view, whose last checkpoint is the start. 64 epochs (40k steps, long enough for the copies) and the rate are our choice.
# DINOv3's anchor sees the crop at twice the size; here it sees the same image.
_base_ = '../unified_view/data2vec_vit-base-p16_8xb256-300e_in1k.py'

model = dict(
    backbone=dict(
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/data2vec_vit-base-p16_8xb256-300e_in1k/epoch_300.pth')),
    teachers=dict(ema=dict(type='AnchoredTeacher', every=10_000, times=3)),
    objectives=dict(
        gram=dict(
            teacher='ema', tap='anchor.output', student='output', loss=dict(type='GramLoss'), region='all',
            weight=2.0)))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=2, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=2, end=64, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=64)
