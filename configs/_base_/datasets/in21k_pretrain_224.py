# ImageNet-21K as a folder of class folders, unlabelled. Crops and pixel statistics are those of in1k_pretrain_224.py.
# No list is needed: all images below the folder are used.
_base_ = 'folder_pretrain_224.py'

data_root = 'data/imagenet21k/train/'
train_dataloader = dict(dataset=dict(data_root=data_root))
