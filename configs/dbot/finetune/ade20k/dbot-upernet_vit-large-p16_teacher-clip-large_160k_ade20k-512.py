# The CLIP-distilled student (56.2 mIoU, published): BEiT's backbone, a relative bias per block initialised from the
# shared table, no absolute positions, layer scale 0.1; rate 9e-6, layer decay 0.9, drop path 0.1.
_base_ = '../../../downstream/mmseg/vit-large-p16_upernet_160k_ade20k-512.py'

model = dict(
    backbone=dict(
        drop_path_rate=0.1, position='none', layer_scale=0.1,
        init_cfg=dict(
            checkpoint='work_dirs/dbot-sym_vit-large-p16_teacher-clip-large_8xb512-1x1600e_in1k/epoch_1600.pth',
            allow_missing=[])))
optim_wrapper = dict(optimizer=dict(lr=9e-6), paramwise_cfg=dict(layer_decay_rate=0.9))
