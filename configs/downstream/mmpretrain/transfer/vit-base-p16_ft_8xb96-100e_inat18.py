# iNaturalist 2018. No paper states batch size and rate for this dataset; those of iNaturalist 2019 are used.
_base_ = './vit-base-p16_ft_8xb96-100e_inat19.py'

data_preprocessor = dict(num_classes=8142)
train_dataloader = dict(dataset=dict(data_root='data/inat18'))
val_dataloader = dict(dataset=dict(data_root='data/inat18'))
test_dataloader = val_dataloader
model = dict(head=dict(num_classes=8142))
