# Stanford Cars. The paper states batch 768 and rate 7.5e-6; the authors built on dBOT's code (run.sh,
# evaluation/eval_cls.py), where that is the rate per 512 images and training takes 1000 epochs. Layer decay, drop
# path and augmentation are those of ImageNet-1K (our choice).
_base_ = '../in1k/hybrid-ft_vit-base-p16_8xb32-100e_in1k.py'

data_preprocessor = dict(num_classes=196)
train_dataloader = dict(
    batch_size=96,
    dataset=dict(
        _delete_=True, type='StanfordCars', data_root='data/stanfordcars', split='train',
        pipeline={{_base_.train_pipeline}}))
val_dataloader = dict(
    batch_size=96,
    dataset=dict(
        _delete_=True, type='StanfordCars', data_root='data/stanfordcars', split='test',
        pipeline={{_base_.test_pipeline}}))
test_dataloader = val_dataloader
model = dict(head=dict(num_classes=196))
optim_wrapper = dict(optimizer=dict(lr=7.5e-6 * 768 / 512))  # the reference code scales the rate by batch / 512
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=5, end=1000, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=1000)
auto_scale_lr = dict(base_batch_size=768)
