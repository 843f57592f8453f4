# iNaturalist 2018: the recipe of iNaturalist 2019, as in dBOT's reference code.
_base_ = './vit-base-p16_ft_8xb96-360e_inat19.py'

data_preprocessor = dict(num_classes=8142)
train_dataloader = dict(dataset=dict(data_root='data/inat18'))
val_dataloader = dict(dataset=dict(data_root='data/inat18'))
test_dataloader = val_dataloader
model = dict(head=dict(num_classes=8142))
