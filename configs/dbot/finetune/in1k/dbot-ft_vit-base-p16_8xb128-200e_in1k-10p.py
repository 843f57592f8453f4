# dBOT's semi-supervised fine-tuning (54.8 and 74.5 with 1 % and 10 % of the labels). Make the list of images with
#     python tools/dataset_tools/make_label_list.py data/imagenet/train data/imagenet/meta/train_10p.txt --percent 10
# or with --published for SimCLR's list. The paper gives no settings: length (about 25,000 steps) and warm-up are our
# choice, everything else is as in fine-tuning with all labels.
_base_ = 'dbot-ft_vit-base-p16_8xb128-100e_in1k.py'

train_dataloader = dict(dataset=dict(ann_file='meta/train_10p.txt'))
warmup, length = _base_.param_scheduler
param_scheduler = [dict(warmup, end=10), dict(length, begin=10, end=200)]
del warmup, length
train_cfg = dict(max_epochs=200)
