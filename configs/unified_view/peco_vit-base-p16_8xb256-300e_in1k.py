# PeCo: BEiT's config with class indices of a VQGAN that was trained with a perceptual loss. No package here has PeCo's network:
# register yours as PerceptualVQGAN, a module that maps images (B, 3, 224, 224) in −1 … 1 to class numbers (B, 196), and import
# it by custom_imports (docs/teachers.md, "A network of your own"). PeCo's codebook has 8192 classes (to our knowledge); set
# yours. Otherwise as in every row here: ViT-B/16, MaskDistill's schedule of 300 epochs.
_base_ = [
    '../_base_/models/symmetric_vit-base-p16.py', '../_base_/datasets/in1k_pretrain_224.py',
    '../_base_/schedules/pretrain_bs2048_300e.py', '../_base_/runtime.py']

model = dict(
    teachers=dict(
        vqgan=dict(
            type='GeneratorTeacher', num_classes=8192, generator=dict(type='PerceptualVQGAN'),
            pixel_mean=[127.5] * 3, pixel_std=[127.5] * 3)),
    objectives=dict(
        code=dict(
            teacher='vqgan', tap='output', student='output', head=dict(type='LinearHead'),
            loss=dict(type='TokenCrossEntropy'), region='hidden')))
train_dataloader = dict(batch_size=256)
