# BootMAE: a moving average of the student and pixels as targets, each with LN, a decoder for each, L2. BootMAE's pixel
# decoder also reads a low block; here both decoders read the encoder's output. Otherwise as in every row here:
# ViT-B/16, MaskDistill's schedule of 300 epochs.
_base_ = [
    '../_base_/models/asymmetric_vit-base-p16.py', '../_base_/datasets/in1k_pretrain_224.py',
    '../_base_/schedules/pretrain_bs2048_300e.py', '../_base_/runtime.py']

decoder = dict(type='TransformerDecoder', depth=2, width=512, num_heads=16)
model = dict(
    teachers=dict(ema=dict(type='MomentumTeacher', momentum=0.9998), pixel=dict(type='PixelTeacher')),
    objectives=dict(
        feature=dict(
            teacher='ema', tap='output', normalize=dict(type='TokenStandardize', unbiased=False), student='output',
            head=decoder, loss=dict(type='MSELoss'), region='hidden'),
        pixel=dict(
            teacher='pixel', tap='output', normalize=dict(type='TokenStandardize', unbiased=True), student='output',
            head=decoder, loss=dict(type='MSELoss'), region='hidden')))
train_dataloader = dict(batch_size=256)
