# ResNet-18 from DINOv3 ViT-S/16, without masking: the last map of 7 × 7, resampled to the teacher's 14 × 14 patches,
# learns its tokens, and the map's mean learns cls. The recipe is ours. The file starts mmdet's, mmseg's, mmpretrain's and
# timm's ResNet-18, which have the same names.
_base_ = [
    '../_base_/datasets/in1k_pretrain_224.py', '../_base_/schedules/pretrain_bs1024_300e.py', '../_base_/runtime.py']

model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(type='BackboneStudent', patch_size=16, network=dict(type='mmpretrain.ResNet', depth=18)),
    masking=dict(type='NoMasking'),
    teachers=dict(
        dinov3=dict(
            type='TimmTeacher', model='vit_small_patch16_dinov3', checkpoint='checkpoints/dinov3_vits16.safetensors')),
    objectives=dict(
        feature=dict(
            teacher='dinov3', tap='output', normalize=dict(type='TokenStandardize', unbiased=False), student='output',
            head=dict(type='LinearHead'), loss=dict(type='SmoothL1Loss', beta=1.0), region='all+cls')))
train_dataloader = dict(batch_size=128)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=10, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=10, end=100, convert_to_iter_based=True)]
train_cfg = dict(max_epochs=100)
