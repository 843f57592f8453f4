# A larger teacher: a ViT-L trained for two stages teaches a new ViT-B for one stage (84.6 top-1, 53.1 AP-box, 50.1
# mIoU). Set model.teachers.boot.checkpoint to the stage-2 student of dbot_vit-large-p16.
_base_ = 'dbot_vit-base-p16_8xb512-2x800e_in1k.py'

model = dict(
    teachers=dict(
        boot=dict(
            _delete_=True, type='ViTTeacher', arch='l', patch_size=16,
            checkpoint='work_dirs/dbot_vit-large-p16_8xb512-2x800e_in1k/stage_2.pth')))
custom_hooks = []
train_cfg = dict(max_epochs=800)
