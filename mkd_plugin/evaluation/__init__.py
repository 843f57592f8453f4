"""Evaluation of frozen networks by k-NN, linear probes and few-shot; label lists; robustness of classifiers.

:mod:`mkd_plugin.reporting.evaluation_report` runs these measurements on several checkpoints.
"""

from mkd_plugin.evaluation.features import Feature, Features, FeatureStore, Split
from mkd_plugin.evaluation.fewshot import FEW, SHOTS, FewShot, draw_shots, few_shot
from mkd_plugin.evaluation.images import LabelledImages, Preprocessing, open_images
from mkd_plugin.evaluation.knn import KS, TEMPERATURE, knn_accuracy, knn_predict
from mkd_plugin.evaluation.linear import LARS, SGD, Head, ProbeSettings, shortened, train_probes
from mkd_plugin.evaluation.protocols import PROTOCOLS, Data, Plan, Row

__all__ = [
    'FEW',
    'KS',
    'LARS',
    'PROTOCOLS',
    'SGD',
    'SHOTS',
    'TEMPERATURE',
    'Data',
    'Feature',
    'FeatureStore',
    'Features',
    'FewShot',
    'Head',
    'LabelledImages',
    'Plan',
    'Preprocessing',
    'ProbeSettings',
    'Row',
    'Split',
    'draw_shots',
    'few_shot',
    'knn_accuracy',
    'knn_predict',
    'open_images',
    'shortened',
    'train_probes',
]
