# MaskFeat: histograms of oriented gradients, one linear layer, L2. Uses mmpretrain's HOG with the settings of its
# configs/maskfeat. Otherwise as in every row here: ViT-B/16, MaskDistill's schedule of 300 epochs.
_base_ = [
    '../_base_/models/symmetric_vit-base-p16.py', '../_base_/datasets/in1k_pretrain_224.py',
    '../_base_/schedules/pretrain_bs2048_300e.py', '../_base_/runtime.py']

model = dict(
    teachers=dict(
        hog=dict(
            type='GeneratorTeacher',
            generator=dict(type='mmpretrain.HOGGenerator', nbins=9, pool=8, gaussian_window=16))),
    objectives=dict(
        hog=dict(
            teacher='hog', tap='output', student='output', head=dict(type='LinearHead'), loss=dict(type='MSELoss'),
            region='hidden')))
train_dataloader = dict(batch_size=256)
