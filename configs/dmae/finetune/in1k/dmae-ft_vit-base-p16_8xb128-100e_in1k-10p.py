# DMAE's semi-supervised fine-tuning, 100 epochs (Table 6: 50.3 and 73.4 with 1 % and 10 % of the labels; MAE 33.9 and
# 65.0 from 100 epochs of pre-training, 49.6 and 72.8 from 1600). Make the list of images with
#     python tools/dataset_tools/make_label_list.py data/imagenet/train data/imagenet/meta/train_10p.txt --percent 10
# or with --published for SimCLR's list. Everything else is as in fine-tuning with all labels (our choice).
_base_ = 'dmae-ft_vit-base-p16_8xb128-100e_in1k.py'

train_dataloader = dict(dataset=dict(ann_file='meta/train_10p.txt'))
