# CrossMAE, ViT-B/16, predicting all hidden patches: 83.7 top-1, the checkpoint of the reference code's table.
_base_ = 'crossmae_vit-base-p16_8xb512-800e_in1k.py'

model = dict(
    masking=dict(_delete_=True, type='RandomMasking', ratio=0.75), objectives=dict(pixel=dict(region='hidden')))
optim_wrapper = dict(optimizer=dict(lr=2.4e-3))
