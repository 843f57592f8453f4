# VQ-KD, the tokenizer of BEiT v2, with the settings of "Towards Understanding Masked Distillation": CLIP-B/16's projected
# tokens are reconstructed from one of 8192 codes of 32 channels per patch by one transformer block; 100 epochs at batch 512,
# AdamW (0.9, 0.99), 2e-4 to 1e-5, 5 epochs of warm-up, weight decay 1e-4. BEiT v2's: codes start as k-means of the first
# batch, decay 0.99 of the codes, commitment 1, cosine, learned positions, no drop path, no clip. Our choice: crop (0.2, 1)
# and flip as in most recipes here (BEiT v2's command has 0.08).
_base_ = [
    '../_base_/datasets/in1k_pretrain_224.py', '../_base_/schedules/pretrain_bs2048_300e.py', '../_base_/runtime.py']

model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(type='PlainViT', arch='b', patch_size=16, position='learned'),
    masking=dict(type='NoMasking'),
    teachers=dict(teacher=dict(type='CLIPTeacher', arch='b', patch_size=16, checkpoint='checkpoints/ViT-B-16.pt')),
    objectives=dict(
        feature=dict(
            teacher='teacher', tap='projected', student='output',
            head=dict(type='CodebookDecoder', codes=8192, code_width=32, depth=1, width=768, num_heads=12),
            loss=dict(type='CosineLoss'), region='all')))
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=2e-4, betas=(0.9, 0.99), weight_decay=1e-4), clip_grad=None)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5, end=100, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=100)
auto_scale_lr = dict(base_batch_size=512)
