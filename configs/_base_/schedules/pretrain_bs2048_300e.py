# MaskDistill's pre-training: AdamW (0.9, 0.999), 1.5e-3 at batch 2048, 10 epochs of warm-up, cosine to 1e-5, clip 3.0.
optim_wrapper = dict(
    type='AmpOptimWrapper',
    dtype='bfloat16',  # our choice, as in every recipe here
    loss_scale=dict(enabled=False),  # a scaler would search all gradients in every step
    optimizer=dict(type='AdamW', lr=1.5e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=3.0),
    # no decay on 1-D parameters, cls and learned positions: BEiT's, which MaskDistill follows (Sec. 4.1)
    constructor='mkd_plugin.FewGroupsConstructor',  # two groups instead of one per parameter
    paramwise_cfg=dict(
        flat_decay_mult=0.0,
        custom_keys=dict(cls_token=dict(decay_mult=0.0), pos_embed=dict(decay_mult=0.0))))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=10, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=10, end=300, convert_to_iter_based=True),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=300)
auto_scale_lr = dict(base_batch_size=2048)
