# BEiT v2: class indices of the VQ-KD tokenizer (mmpretrain's), one linear layer, cross entropy. Without BEiT v2's patch
# aggregation (a second shallow head through cls), which the table's row does not have either. Otherwise as in every row
# here: ViT-B/16, MaskDistill's schedule of 300 epochs.
_base_ = [
    '../_base_/models/symmetric_vit-base-p16.py', '../_base_/datasets/in1k_pretrain_224.py',
    '../_base_/schedules/pretrain_bs2048_300e.py', '../_base_/runtime.py']

vqkd_encoder = dict(
    arch='base', img_size=224, patch_size=16, in_channels=3, out_indices=-1, drop_rate=0.0, drop_path_rate=0.0,
    norm_cfg=dict(type='LN', eps=1e-6), final_norm=True, out_type='featmap', with_cls_token=True, frozen_stages=-1,
    use_abs_pos_emb=True, use_rel_pos_bias=False, use_shared_rel_pos_bias=False, layer_scale_init_value=0.0,
    interpolate_mode='bicubic', patch_cfg=dict(), layer_cfgs=dict(), init_cfg=None)
model = dict(
    teachers=dict(
        vqkd=dict(
            type='GeneratorTeacher', num_classes=8192,
            generator=dict(
                type='mmpretrain.VQKD', encoder_config=vqkd_encoder,
                init_cfg=dict(type='Pretrained', checkpoint='checkpoints/vqkd_encoder.pth')),
            pixel_mean=[127.5] * 3, pixel_std=[127.5] * 3)),
    objectives=dict(
        code=dict(
            teacher='vqkd', tap='output', student='output', head=dict(type='LinearHead'),
            loss=dict(type='TokenCrossEntropy'), region='hidden')))
train_dataloader = dict(batch_size=256)
