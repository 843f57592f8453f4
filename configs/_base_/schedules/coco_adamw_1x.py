# mmdet's 1x schedule (12 epochs, steps at 8 and 11, warm-up of 500 iterations from 1e-3 of the rate, batch 16) with
# AdamW and layer-wise rates. No gradient clip. Betas are AdamW's defaults.
_base_ = 'mmdet::_base_/schedules/schedule_1x.py'

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='mkd_plugin.LayerDecayConstructor', paramwise_cfg=dict(layer_decay_rate=0.75))
