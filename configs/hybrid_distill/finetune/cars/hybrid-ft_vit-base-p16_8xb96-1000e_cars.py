# Stanford Cars. The paper states batch 768 and rate 7.5e-6; the authors built on dBOT's code (run.sh,
# evaluation/eval_cls.py), where that is the rate per 512 images and training takes 1000 epochs. Layer decay, drop
# path and augmentation are those of ImageNet-1K (our choice).
_base_ = '../../../downstream/mmpretrain/transfer/vit-base-p16_ft_8xb96-1000e_flowers102.py'

data_preprocessor = dict(num_classes=196)
train_dataloader = dict(dataset=dict(type='StanfordCars', data_root='data/stanfordcars', split='train'))
val_dataloader = dict(dataset=dict(type='StanfordCars', data_root='data/stanfordcars'))
test_dataloader = val_dataloader
model = dict(
    backbone=dict(
        drop_path_rate=0.2,
        init_cfg=dict(checkpoint='work_dirs/hybrid_vit-base-p16_mae-deit_8xb128-300e_in1k/epoch_300.pth')),
    head=dict(num_classes=196, init_cfg=[dict(type='TruncNormal', layer='Linear', std=0.01)]))
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.75))
