# dBOT on scenes of digits, for the detector and segmentor of finetune/digit_scenes: patches of 8 pixels and a ViT that
# trains on a CPU in half an hour. The method is that of dbot_vit-base-p16, except for the sizes and for teacher 0,
# which has no blocks, as in the reference code for ViT-L and ViT-H (configs/dbot/README.md).
_base_ = [
    '../_base_/datasets/digit_scenes_pretrain.py', '../_base_/schedules/digits_100e.py', '../_base_/runtime_digits.py'
]

model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(type='VisibleViT', arch=dict(width=96, depth=6, num_heads=4), img_size=80, patch_size=8),
    masking=dict(type='RandomMasking', ratio=0.75),
    teachers=dict(boot=dict(type='BootstrappedTeacher', start='student', stages=2, start_depth=0)),
    objectives=dict(
        feature=dict(
            teacher='boot', tap='block:-1', normalize=dict(type='TokenStandardize', unbiased=True),
            student='output', head=dict(type='TransformerDecoder', depth=2, width=64, num_heads=4),
            loss=dict(type='SmoothL1Loss', beta=2.0), region='hidden+cls')))
train_cfg = dict(max_epochs=200)
default_hooks = dict(checkpoint=dict(interval=10), logger=dict(interval=31))
