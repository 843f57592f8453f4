# DMAE's semi-supervised fine-tuning (50.3 and 73.4 with 1 % and 10 % of the labels): the list of images is made by
#     python tools/dataset_tools/make_label_list.py data/imagenet/train data/imagenet/meta/train_1p.txt --percent 1
# or with --published from SimCLR's. The paper gives no settings: length and warm-up are our choice (about 5,000 steps), all
# else is the fine-tuning's with all labels.
_base_ = 'dmae-ft_vit-base-p16_8xb128-100e_in1k.py'

train_dataloader = dict(dataset=dict(ann_file='meta/train_1p.txt'))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    # a ratio, so that the least rate of 1e-6 is scaled by layer like every other rate
    dict(
        type='CosineAnnealingLR', eta_min_ratio=1e-6 / 2e-3, by_epoch=True, begin=20, end=400, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=400)
