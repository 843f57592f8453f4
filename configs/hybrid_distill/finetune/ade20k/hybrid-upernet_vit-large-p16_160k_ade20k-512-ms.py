# Multi-scale test with tools/test.py of a checkpoint of the config without -ms: mmseg's six scales, 0.5 to 1.75, each
# with and without flip.
_base_ = 'hybrid-upernet_vit-large-p16_160k_ade20k-512.py'

model = dict(_delete_=True, type='SegTTAModel', module=_base_.model)
test_dataloader = dict(dataset=dict(pipeline=_base_.tta_pipeline))
train_dataloader = train_cfg = optim_wrapper = param_scheduler = None
val_dataloader = val_cfg = val_evaluator = None
