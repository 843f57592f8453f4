# ImageNet-21K as a folder of class folders, unlabelled; crops and statistics are those of in1k_pretrain_224.py. No list is
# needed: whatever images lie below the folder are taken.
_base_ = 'folder_pretrain_224.py'

data_root = 'data/imagenet21k/train/'
train_dataloader = dict(dataset=dict(data_root=data_root))
