# Blocks are drawn by mmpretrain's BEiTMaskGenerator in the data pipeline instead of on the device. Its distribution is not that
# of `BlockMasking`: it hides exactly 78 = floor(0.4 · 196) patches and never the last row or column, whereas BEiT's own
# generator and ours stop after ten failures and hide 77.5 on average. A mask from the data replaces the one of `masking`. The
# maximum number of hidden patches is then unknown in advance, so the teacher's last block computes every token.
_base_ = 'maskdistill_vit-base-p16_8xb256-300e_in1k.py'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4, hue=0.0),
    dict(type='mkd_plugin.CropForDevice', scale=224, crop_ratio_range=(0.2, 1.0)),
    dict(type='mkd_plugin.FlipOnDevice', prob=0.5),
    dict(type='BEiTMaskGenerator', input_size=(14, 14), num_masking_patches=78, min_num_patches=16),
    dict(type='mkd_plugin.PackCrops'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
