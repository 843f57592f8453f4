# Values of dBOT's reference script for CLIP-distilled students that differ from Table A2: rate 1e-4, layer decay 0.8,
# warm-up 5. Its epochs and drop path are unknown to us; Table A2's are used.
_base_ = 'dbot-ft_vit-large-p16_teacher-clip-large_8xb128-50e_in1k.py'

optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(layer_decay_rate=0.8))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    # a ratio, so that layer decay also scales the minimum rate of 1e-6
    dict(type='CosineAnnealingLR', eta_min_ratio=1e-6 / 1e-4, by_epoch=True, begin=5, end=50, convert_to_iter_based=True),
]
