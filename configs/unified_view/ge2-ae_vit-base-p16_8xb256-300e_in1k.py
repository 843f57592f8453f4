# Ge2-AE: pixels and the image's Fourier spectrum, a decoder for each, L2. The spectrum is cut into patches of frequencies, one
# for each of the decoder's tokens. Ge2-AE also weights frequencies by their errors (focal frequency loss), and transforms each
# decoder's output to compare it with the other's target. Depth and width of the decoders are our choices. Otherwise as in every
# row here: ViT-B/16, MaskDistill's schedule of 300 epochs.
_base_ = [
    '../_base_/models/asymmetric_vit-base-p16.py', '../_base_/datasets/in1k_pretrain_224.py',
    '../_base_/schedules/pretrain_bs2048_300e.py', '../_base_/runtime.py']

decoder = dict(type='TransformerDecoder', depth=4, width=512, num_heads=16)
model = dict(
    teachers=dict(pixel=dict(type='PixelTeacher'), frequency=dict(type='SpectrumTeacher')),
    objectives=dict(
        pixel=dict(
            teacher='pixel', tap='output', student='output', head=decoder, loss=dict(type='MSELoss'), region='hidden'),
        frequency=dict(
            teacher='frequency', tap='output', student='output', head=decoder, loss=dict(type='MSELoss'), region='all')))
train_dataloader = dict(batch_size=256)
