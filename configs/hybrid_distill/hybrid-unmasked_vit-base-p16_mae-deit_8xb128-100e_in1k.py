# Base of the ablations: 100 epochs, no masking. That they were run without masking is inferred: the figure for alpha =
# 1, 50.0 AP-box, equals the paper's result without masking (49.9 with K = 30 %).
_base_ = 'hybrid_vit-base-p16_mae-deit_8xb128-300e_in1k.py'

model = dict(masking=dict(_delete_=True, type='NoMasking'))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=5, end=100, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=100)
