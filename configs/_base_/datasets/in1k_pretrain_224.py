# ImageNet-1K, RandomResizedCrop (0.2, 1) bicubic + flip: dBOT's Table A1, MAE and DMAE; mmpretrain's own config has it.
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs512_mae.py'
