# MILAN: CLIP's tokens, l2-normalised on both sides, decoder, L2 over all tokens; the visible patches are sampled by
# CLIP's attention. MILAN's decoder keeps the encoder's visible tokens as fixed prompts; this row has MAE's decoder.
# Otherwise as in every row here: ViT-B/16, MaskDistill's schedule of 300 epochs.
_base_ = [
    '../_base_/models/asymmetric_vit-base-p16.py', '../_base_/datasets/in1k_pretrain_224.py',
    '../_base_/schedules/pretrain_bs2048_300e.py', '../_base_/runtime.py']

model = dict(
    masking=dict(_delete_=True, type='AttentionMasking', teacher='clip', ratio=0.75),
    teachers=dict(clip=dict(type='CLIPTeacher', arch='b', checkpoint='checkpoints/ViT-B-16.pt')),
    objectives=dict(
        feature=dict(
            teacher='clip', tap='projected', normalize=dict(type='L2Normalize'), normalize_prediction=True,
            student='output', head=dict(type='TransformerDecoder', depth=8, width=512, num_heads=16),
            loss=dict(type='MSELoss'), region='all')))
train_dataloader = dict(batch_size=256)
