# DMAE's semi-supervised fine-tuning (50.3 and 73.4 with 1 % and 10 % of the labels): the list of images is made by
#     python tools/dataset_tools/make_label_list.py data/imagenet/train data/imagenet/meta/train_1p.txt --percent 1
# or with --published from SimCLR's. The paper gives no settings: length and warm-up are our choice (about 5,000 steps), all
# else is the fine-tuning's with all labels.
_base_ = 'dmae-ft_vit-base-p16_8xb128-100e_in1k.py'

train_dataloader = dict(dataset=dict(ann_file='meta/train_1p.txt'))
warmup, length = _base_.param_scheduler
param_scheduler = [dict(warmup, end=20), dict(length, begin=20, end=400)]
del warmup, length
train_cfg = dict(max_epochs=400)
