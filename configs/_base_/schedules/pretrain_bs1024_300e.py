# Hybrid Distill's pre-training: AdamW, batch 1024, rate 6e-4, weight decay 0.05, cosine, 300 epochs. Betas, warm-up (5 % of
# the run) and the final rate of 0 are not in the paper; we use dBOT's, on whose code the authors built. No
# gradient clip.
_base_ = 'pretrain_bs4096_800e.py'

optim_wrapper = dict(optimizer=dict(lr=6e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=15, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=15, end=300, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=300)
auto_scale_lr = dict(base_batch_size=1024)
