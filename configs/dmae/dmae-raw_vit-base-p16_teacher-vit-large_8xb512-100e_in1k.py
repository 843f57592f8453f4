# As described in the paper: L1 on raw features. A component of a unit vector of width 1024 is about 0.03, so weight 1
# is not comparable to weight 1 in the reference code.
_base_ = 'dmae_vit-base-p16_teacher-vit-large_8xb512-100e_in1k.py'

model = dict(objectives=dict(feature=dict(normalize=None, normalize_prediction=False)))
