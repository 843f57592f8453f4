# dBOT, ViT-B/16, on your own images: `--cfg-options data_root=DIR`. The method is dbot_vit-base-p16_8xb512-2x800e_in1k.py
# (a test compares them); with another number of images than ImageNet's 1.28 million, choose the stages' epochs anew.
_base_ = [
    '../_base_/datasets/folder_pretrain_224.py', '../_base_/schedules/pretrain_bs4096_800e.py', '../_base_/runtime.py']

model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(type='VisibleViT', arch='b', patch_size=16, drop_path_rate=0.2),
    masking=dict(type='RandomMasking', ratio=0.75),
    teachers=dict(boot=dict(type='BootstrappedTeacher', start='student')),
    objectives=dict(
        feature=dict(
            teacher='boot', tap='block:-1', normalize=dict(type='TokenStandardize', unbiased=True, eps=1e-6),
            student='output',
            head=dict(type='TransformerDecoder', depth=8, width=512, num_heads=16, drop_path_rate=0.2),
            loss=dict(type='SmoothL1Loss', beta=2.0), region='hidden+cls')))
custom_hooks = [dict(type='mkd_plugin.StageHook', lengths=[800, 800])]
train_cfg = dict(max_epochs=1600)
optim_wrapper = dict(clip_grad=dict(max_norm=3.0))
