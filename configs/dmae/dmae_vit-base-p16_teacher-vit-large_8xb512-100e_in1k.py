# DMAE, ViT-B/16 from MAE's ViT-L/16, 100 epochs (84.0 top-1). Alignment: ★ reference code, both sides L2-normalised.
_base_ = [
    '../_base_/models/dmae_vit-base-p16.py', '../_base_/datasets/in1k_pretrain_224.py',
    '../_base_/schedules/pretrain_bs4096_100e.py', '../_base_/runtime.py']
