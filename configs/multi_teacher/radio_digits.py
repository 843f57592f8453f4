# RADIO-style distillation of two networks on scikit-learn's digits. The teachers need weights: set `checkpoint` (and
# `seed=None`) of both, for example from runs of mae_digits and dbot_digits.
_base_ = ['../_base_/datasets/digits_pretrain.py', '../_base_/schedules/digits_100e.py', '../_base_/runtime_digits.py']

teacher = dict(
    type='ViTTeacher', arch=dict(width=96, depth=4, num_heads=4), patch_size=4, pixel_mean=[77.9] * 3, pixel_std=[92.8] * 3)
adaptor = dict(type='ResidualAdaptor', width=96, depth=1)
summary = dict(tap='output', student='output', head=adaptor, loss=dict(type='CosineLoss'), region='cls')
spatial = dict(
    tap='output', student='output', head=adaptor, normalize=dict(type='FixedStandardize', method='phi', batches=16),
    loss=dict(type='MSELoss'), region='all')
model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(type='PlainViT', arch=dict(width=96, depth=4, num_heads=4), img_size=24, patch_size=4),
    masking=dict(type='NoMasking'),
    teachers=dict(mae=dict(seed=0, **teacher), dbot=dict(seed=1, **teacher)),
    objectives=dict(
        mae_cls=dict(teacher='mae', **summary),
        mae=dict(teacher='mae', **spatial),
        dbot_cls=dict(teacher='dbot', **summary),
        dbot=dict(teacher='dbot', **spatial)))
