# The paper's reading: L1 on raw features. A component of a unit vector of width 1024 is about 0.03, so weight 1 means
# something else here than in the reference code's reading.
_base_ = 'dmae_vit-base-p16_teacher-vit-large_8xb512-100e_in1k.py'

model = dict(objectives=dict(feature=dict(normalize=None, normalize_prediction=False)))
