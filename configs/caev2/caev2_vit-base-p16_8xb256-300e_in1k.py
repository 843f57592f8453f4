# CAE v2, ViT-B/16: CLIP's projected tokens, cosine, one mean over cls, visible and hidden patches. Blocks hide exactly 98 of
# 196 patches. Four cross-attention blocks regress the hidden tokens. The jittered image goes to student and teacher.
_base_ = [
    '../_base_/datasets/in1k_pretrain_224_jitter.py', '../_base_/schedules/pretrain_bs2048_300e.py',
    '../_base_/runtime.py']

model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(type='VisibleViT', arch='b', patch_size=16, layer_scale=0.1, drop_path_rate=0.1),
    masking=dict(type='ExactBlockMasking', ratio=0.5, min_block=16),
    teachers=dict(clip=dict(type='CLIPTeacher', arch='b', patch_size=16, checkpoint='checkpoints/ViT-B-16.pt')),
    objectives=dict(
        feature=dict(
            teacher='clip', tap='projected', student='output',
            head=dict(type='ContextRegressor', depth=4, num_heads=12, layer_scale=0.1),
            loss=dict(type='CosineLoss'), region='all+cls')))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4, hue=0.0),
    dict(type='mkd_plugin.CropForDevice', scale=224, crop_ratio_range=(0.4, 1.0)),
    dict(type='mkd_plugin.FlipOnDevice', prob=0.5),
    dict(type='mkd_plugin.PackCrops'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
