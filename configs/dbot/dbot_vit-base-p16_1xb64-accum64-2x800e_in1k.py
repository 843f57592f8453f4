# ViT-B on one small GPU: the same effective batch of 4096 = 64 images × 64 accumulated steps, with activation
# checkpointing.
_base_ = 'dbot_vit-base-p16_8xb512-2x800e_in1k.py'

model = dict(
    backbone=dict(activation_checkpointing=True),
    objectives=dict(feature=dict(head=dict(activation_checkpointing=True))))
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(accumulative_counts=64)
