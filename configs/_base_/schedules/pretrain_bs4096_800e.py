# dBOT's Table A1, default column; MAE's schedule is the same. One stage: 800 epochs, 40 of warm-up, cosine to 0.
optim_wrapper = dict(
    type='AmpOptimWrapper',
    dtype='bfloat16',  # reports of NaN are about fp16; bf16 needs no loss scaling
    loss_scale=dict(enabled=False),  # a scaler would search all gradients in every step
    optimizer=dict(type='AdamW', lr=1.5e-4 * 4096 / 256, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.05, fused=True),
    constructor='mkd_plugin.FewGroupsConstructor',  # two groups instead of one per parameter
    paramwise_cfg=dict(flat_decay_mult=0.0))  # no decay on 1-D parameters; cls and mask tokens decay, as in the reference code
param_scheduler = [
    # per iteration, from almost 0 as in the reference code; mmengine's LinearLR cannot start at exactly 0
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=40, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=40, end=800, convert_to_iter_based=True),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=800)
auto_scale_lr = dict(base_batch_size=4096)
