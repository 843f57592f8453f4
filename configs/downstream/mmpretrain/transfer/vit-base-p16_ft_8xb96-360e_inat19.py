# iNaturalist 2019: 360 epochs at batch 768, rate 7.5e-6 per 512 images, random erasing 0.1, of dBOT's reference code
# (run.sh and evaluation/eval_cls.py); Hybrid Distill states batch and rate. Layer decay, drop path and the rest of
# the augmentation are those of ImageNet-1K (our choice). Set the checkpoint with model.backbone.init_cfg.checkpoint.
# Make the image lists from the dataset's own files: tools/dataset_tools/make_label_list.py ROOT ROOT/meta/train.txt
# --json ROOT/train2019.json
_base_ = './vit-base-p16_ft_8xb96-1000e_flowers102.py'

train_pipeline = [
    dict(step, erase_prob=0.1) if step['type'] == 'RandomErasing' else step for step in _base_.train_pipeline
]
data_preprocessor = dict(num_classes=1010)
train_dataloader = dict(
    dataset=dict(
        _delete_=True, type='CustomDataset', data_root='data/inat19', ann_file='meta/train.txt', data_prefix='',
        pipeline=train_pipeline))
val_dataloader = dict(
    dataset=dict(
        _delete_=True, type='CustomDataset', data_root='data/inat19', ann_file='meta/val.txt', data_prefix='',
        pipeline={{_base_.test_pipeline}}))
test_dataloader = val_dataloader
model = dict(head=dict(num_classes=1010))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=5, end=360, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=360)
