# UperNet on ADE20K, 160k iterations at 512 px, on mmseg's own model (BEiT's), data and schedule: dBOT's reference code.
# A relative bias per block and layer scale 1.0 trained from scratch in addition to the pre-trained absolute positions,
# which are fine-tuned; AdamW, rate 1e-4 at batch 16, layer decay 0.65, drop path 0.2, weight decay 0.05; warm-up of
# 1500 iterations from 1e-6 of the rate, then linear to 0; test in windows of 512 with stride 341. The method's config
# sets the checkpoint and its own changes. The position tables are built for 512 px, so that neither training nor test
# resizes them. (mmengine's PolyLR begins where the warm-up ends; starting at iteration 0 would lower its rate by up to
# 1 %.)
_base_ = [
    'mmseg::_base_/models/upernet_beit.py', 'mmseg::_base_/datasets/ade20k.py', 'mmseg::_base_/default_runtime.py',
    'mmseg::_base_/schedules/schedule_160k.py', '../../_base_/run.py']

data_preprocessor = dict(size=(512, 512))
model = dict(
    data_preprocessor=data_preprocessor,
    backbone=dict(
        _delete_=True, type='mkd_plugin.DenseViT', arch='b', img_size=512, patch_size=16, out_indices=(3, 5, 7, 11),
        drop_path_rate=0.2, relative_position='per_block', layer_scale=1.0,
        init_cfg=dict(
            type='Pretrained', checkpoint='', prefix='backbone.', allow_missing=['*.rel_pos_bias.*', '*.gamma?.weight'])),
    neck=dict(_delete_=True, type='mkd_plugin.ScalePyramid', in_channels=768, norm_cfg=dict(type='SyncBN')),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)))
train_dataloader = dict(batch_size=2)  # × 8 = 16
# scales and flips of the configs with -ms: multiples of the test size 2048 × 512, whereas mmseg's would scale the
# original size
tta_pipeline = [
    _base_.tta_pipeline[0],
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=(int(2048 * r), int(512 * r)), keep_ratio=True) for r in _base_.img_ratios],
            *_base_.tta_pipeline[1].transforms[1:],
        ]),
]
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='mkd_plugin.LayerDecayConstructor', paramwise_cfg=dict(layer_decay_rate=0.65))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=160000),
]
default_hooks, visualizer = _base_.run_hooks, _base_.run_visualizer
auto_scale_lr = dict(enable=False, base_batch_size=16)
