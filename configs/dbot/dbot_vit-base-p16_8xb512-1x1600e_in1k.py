# One stage of 1600 epochs: Table 5's comparison (83.6), and the recipe for a teacher loaded from a file.
_base_ = 'dbot_vit-base-p16_8xb512-2x800e_in1k.py'

model = dict(teachers=dict(boot=dict(stages=1)))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=40, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=40, end=1600, convert_to_iter_based=True),
]
