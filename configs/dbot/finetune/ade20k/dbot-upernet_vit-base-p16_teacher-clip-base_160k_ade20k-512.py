# The CLIP-distilled student (52.9 mIoU, published): BEiT's backbone, a relative bias per block initialised from the
# shared table, no absolute positions, layer scale 0.1; rate 3e-5, layer decay 0.85, drop path 0.1.
_base_ = '../../../downstream/mmseg/vit-base-p16_upernet_160k_ade20k-512.py'

model = dict(
    backbone=dict(
        drop_path_rate=0.1, position='none', layer_scale=0.1,
        init_cfg=dict(
            checkpoint='work_dirs/dbot-sym_vit-base-p16_teacher-clip-base_8xb512-1x1600e_in1k/epoch_1600.pth',
            allow_missing=[])))
optim_wrapper = dict(optimizer=dict(lr=3e-5), paramwise_cfg=dict(layer_decay_rate=0.85))
