# RADIO-style distillation of DINOv3 (ViT-L/16), SigLIP 2 (So400m/16) and SAM (ViT-L) into a ViT-B/16 at 256 px: an adaptor for
# each teacher and kind of token, cosine on the summary (cls; SigLIP's pooled vector; SAM has none), MSE on patches after PHI-S.
# Losses, heads and PHI-S are those of C-RADIOv4's published config and code. Our choices: ImageNet-1K, one cls token for all
# teachers (RADIO: one each), one residual layer in the adaptors, statistics of 16 batches, the recipe of Hybrid Distill, bf16.
_base_ = [
    '../_base_/datasets/in1k_pretrain_224.py', '../_base_/schedules/pretrain_bs1024_300e.py', '../_base_/runtime.py']

adaptor = dict(type='ResidualAdaptor', width=1280, depth=1)
summary = dict(student='output', head=adaptor, loss=dict(type='CosineLoss'), region='cls')
spatial = dict(
    student='output', head=adaptor, normalize=dict(type='FixedStandardize', method='phi', batches=16),
    loss=dict(type='MSELoss'), region='all')
model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(type='PlainViT', arch='b', img_size=256, patch_size=16, position='learned', num_registers=4),
    masking=dict(type='NoMasking'),
    teachers=dict(
        dinov3=dict(
            type='TimmTeacher', model='vit_large_patch16_dinov3', checkpoint='checkpoints/dinov3_vitl16.safetensors'),
        siglip2=dict(
            type='TimmTeacher', model='vit_so400m_patch16_siglip_256.v2_webli',
            checkpoint='checkpoints/siglip2_so400m_256.safetensors'),
        sam=dict(
            type='TimmTeacher', model='samvit_large_patch16', img_size=1024, resample='bilinear',
            checkpoint='checkpoints/samvit_l16.safetensors')),
    objectives=dict(
        dinov3_cls=dict(teacher='dinov3', tap='output', **summary),
        dinov3=dict(teacher='dinov3', tap='output', **spatial),
        siglip2_cls=dict(teacher='siglip2', tap='pooled', **summary),
        siglip2=dict(teacher='siglip2', tap='output', **spatial),
        sam=dict(teacher='sam', tap='output', **spatial)))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mkd_plugin.CropForDevice', scale=256, crop_ratio_range=(0.2, 1.0)),
    dict(type='mkd_plugin.FlipOnDevice', prob=0.5),
    dict(type='mkd_plugin.PackCrops'),
]
train_dataloader = dict(batch_size=128, dataset=dict(pipeline=train_pipeline))
