# FD, feature distillation of CLIP-B/16, a baseline of Hybrid Distill: the student sees everything; smooth L1 with beta
# 2.0 on all tokens and cls; the target is the teacher's output after its final norm (CLIP's ln_post, not projected),
# then LayerNorm without affine; shared relative bias and no absolute embedding; drop path 0.2, clip 3.0, rate 1.2e-3 at
# batch 2048, and 300 epochs like Hybrid Distill's other baselines. Betas, weight decay, warm-up, minimum rate and
# augmentation are MaskDistill's (our choice), as are the linear head and no layer scale.
_base_ = [
    '../_base_/datasets/in1k_pretrain_224_jitter.py', '../_base_/schedules/pretrain_bs2048_300e.py',
    '../_base_/runtime.py']

model = dict(
    type='mkd_plugin.MaskedDistiller',
    backbone=dict(
        type='PlainViT', arch='b', patch_size=16, drop_path_rate=0.2, position='none', relative_position='shared'),
    masking=dict(type='NoMasking'),
    teachers=dict(teacher=dict(type='CLIPTeacher', arch='b', patch_size=16, checkpoint='checkpoints/ViT-B-16.pt')),
    objectives=dict(
        feature=dict(
            teacher='teacher', tap='output', normalize=dict(type='TokenStandardize', unbiased=False, eps=1e-5),
            student='output', head=dict(type='LinearHead'), loss=dict(type='SmoothL1Loss', beta=2.0), region='all+cls')))
optim_wrapper = dict(optimizer=dict(lr=1.2e-3))
