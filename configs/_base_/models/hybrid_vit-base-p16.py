# Hybrid Distill with ViT-B/16: the features of DeiT, the token relations of MAE in layers L−1 and L−2 (11th and 10th of
# 12), alpha = 1; MAE drops K = 30 % of the tokens at the inputs of blocks 0, L/3 and 2L/3. Our choices where the paper
# gives no details, in addition to those of distill_vit-base-p16.py: relations per head and unscaled (`logit:i` divides
# by √d), with cls; layers of relations count from 1, "layer 0" of the masking is the input of the first block; each step
# keeps round(L · (1 − K)^i) patches; similarity is the cosine similarity to the mean of the remaining patches. That
# similarity, and K = 30 % for the main results, are inferred.
_base_ = 'distill_vit-base-p16.py'

relations = ('relation:-3', 'relation:-2')
model = dict(
    masking=dict(_delete_=True, type='RedundancyMasking', teacher='mim', drop=0.3, at=(0, 4, 8)),
    teachers=dict(mim=dict(type='ViTTeacher', arch='b', patch_size=16, checkpoint='checkpoints/mae_pretrain_vit_base.pth')),
    objectives=dict(
        relation=dict(
            teacher='mim', tap=relations, student=relations,
            loss=dict(type='SmoothL1Loss', beta=2.0), region='visible+cls', weight=1.0)))
