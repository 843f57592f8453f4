# dBOT on scikit-learn's digits, used by tools/quickstart.sh. Differs from dbot_vit-base-p16 only in its sizes.
_base_ = ['../_base_/datasets/digits_pretrain.py', '../_base_/schedules/digits_100e.py', '../_base_/runtime_digits.py']

model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(type='VisibleViT', arch=dict(width=96, depth=4, num_heads=4), img_size=24, patch_size=4),
    masking=dict(type='RandomMasking', ratio=0.75),
    teachers=dict(boot=dict(type='BootstrappedTeacher', start='student', stages=2)),
    objectives=dict(
        feature=dict(
            teacher='boot', tap='block:-1', normalize=dict(type='TokenStandardize', unbiased=True),
            student='output', head=dict(type='TransformerDecoder', depth=2, width=64, num_heads=4),
            loss=dict(type='SmoothL1Loss', beta=2.0), region='hidden+cls')))
train_cfg = dict(max_epochs=200)
