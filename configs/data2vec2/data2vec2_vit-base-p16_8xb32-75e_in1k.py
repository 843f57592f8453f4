# data2vec 2.0, ViT-B/16, 75 epochs. Each image has 16 masks, each showing 39 patches around random squares; the moving average
# runs once for all of them. The target is the mean of its last ten MLP outputs; a small convolutional decoder predicts it, and
# the student's cls token its mean over all patches. Numbers are those of base_images_only_task.yaml (256 images a step; the
# schedule of 375,300 steps is 75 epochs, with 10 of warm-up).
# Weights: the code's sum over channels / √768 is √768 times a mean; its cls term, 0.01 times a sum over the 256 masks of a GPU,
# is 2.56 · √768 times a mean. The reference ViT is post-norm; ours is pre-norm.
_base_ = [
    '../_base_/datasets/in1k_pretrain_224.py', '../_base_/schedules/pretrain_bs2048_300e.py', '../_base_/runtime.py']

model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(type='VisibleViT', arch='b', patch_size=16),
    masking=dict(
        type='SeveralMasks', count=16, masking=dict(type='InverseBlockMasking', num_visible=39, blocks=5, side=3)),
    teachers=dict(
        ema=dict(
            type='LayerAverageTeacher', last=10,
            momentum=dict(type='LinearRamp', start=0.9998, end=0.99999, steps=100_000))),
    objectives=dict(
        feature=dict(
            teacher='ema', tap='target', student='output',
            head=dict(type='ConvDecoder', depth=6, width=768, kernel=3, groups=16, noise=0.01),
            loss=dict(type='MSELoss'), region='hidden', weight=768**0.5),
        cls=dict(
            teacher='ema', tap='target', student='output', loss=dict(type='MSELoss'), region='cls',
            weight=2.56 * 768**0.5)))
train_dataloader = dict(batch_size=32)
optim_wrapper = dict(
    optimizer=dict(lr=1e-3, betas=(0.9, 0.95)),
    clip_grad=dict(max_norm=4.0),
    paramwise_cfg=dict(_delete_=True, flat_decay_mult=0.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=10, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=10, end=75, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=75)
auto_scale_lr = dict(base_batch_size=256)
