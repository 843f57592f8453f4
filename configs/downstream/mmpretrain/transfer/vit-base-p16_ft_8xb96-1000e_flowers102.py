# Oxford Flowers 102, trained on train + val: 1000 epochs at batch 768, rate 7.5e-6 per 512 images, of dBOT's
# reference code (run.sh and evaluation/eval_cls.py). Layer decay, drop path and augmentation are those of ImageNet-1K
# (our choice). Set the checkpoint with model.backbone.init_cfg.checkpoint.
_base_ = '../vit-base-p16_ft_8xb128-100e_in1k.py'

data_preprocessor = dict(num_classes=102)
train_dataloader = dict(
    batch_size=96,
    dataset=dict(
        _delete_=True, type='Flowers102', data_root='data/flowers102', split='trainval',
        pipeline={{_base_.train_pipeline}}))
val_dataloader = dict(
    batch_size=96,
    dataset=dict(
        _delete_=True, type='Flowers102', data_root='data/flowers102', split='test',
        pipeline={{_base_.test_pipeline}}))
test_dataloader = val_dataloader
model = dict(head=dict(num_classes=102))
optim_wrapper = dict(optimizer=dict(lr=7.5e-6 * 768 / 512))  # the reference code scales the rate by batch / 512
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=5, end=1000, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=1000)
auto_scale_lr = dict(base_batch_size=768)
