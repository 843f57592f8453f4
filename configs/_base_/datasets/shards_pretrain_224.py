# A folder of tar shards (tools/dataset_tools/make_shards.py, or WebDataset's): `--cfg-options data_root=DIR`. Otherwise
# identical to folder_pretrain_224.py.
_base_ = 'folder_pretrain_224.py'

data_root = 'data/shards/'
train_dataloader = dict(
    dataset=dict(
        type='mkd_plugin.ShardDataset',
        data_root=data_root,
        exclude=[],  # endings of images that are no samples: ['.seg.png'] leaves masks beside the images out
    ))
