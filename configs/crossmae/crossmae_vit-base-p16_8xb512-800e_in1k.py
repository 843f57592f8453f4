# CrossMAE, ViT-B/16, predicting a quarter of all patches (49 of the 147 hidden ones; the reference command). MAE with a decoder
# of 12 cross-attention blocks: mask tokens attend to learned sums of the embeddings and all block outputs of the student, and
# not to each other. The rate is MAE's times 0.25 / 0.75, as in the reference code.
# The student's final norm is read by no loss; the reference encoder has none.
_base_ = [
    '../_base_/datasets/in1k_pretrain_224.py', '../_base_/schedules/pretrain_bs4096_800e.py', '../_base_/runtime.py']

model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(type='VisibleViT', arch='b', patch_size=16),
    masking=dict(type='SampledMasking', ratio=0.75, predicted=0.25),
    teachers=dict(pixel=dict(type='PixelTeacher')),
    objectives=dict(
        pixel=dict(
            teacher='pixel', tap='output', normalize=dict(type='TokenStandardize', unbiased=True, eps=1e-6),
            student=['input:0', *[f'block:{i}' for i in range(12)]],
            head=dict(type='CrossAttentionDecoder', depth=12, width=512, num_heads=16),
            loss=dict(type='MSELoss'), region='sample')))
optim_wrapper = dict(optimizer=dict(lr=8e-4))
find_unused_parameters = True
