"""Evaluation of frozen networks: k-NN, linear probes, few-shot; label lists for semi-supervised fine-tuning.

``run`` goes through checkpoints and protocols, ``features`` computes what the protocols read. ``tools/evaluate.py`` is the
command.
"""

from mkd_plugin.evaluation.features import Feature, Features, FeatureStore, Split
from mkd_plugin.evaluation.fewshot import FEW, SHOTS, FewShot, draw_shots, few_shot
from mkd_plugin.evaluation.images import LabelledImages, Preprocessing, open_images
from mkd_plugin.evaluation.knn import KS, TEMPERATURE, knn_accuracy, knn_predict
from mkd_plugin.evaluation.linear import LARS, SGD, Head, ProbeSettings, shortened, train_probes
from mkd_plugin.evaluation.protocols import PROTOCOLS, Plan, Row
from mkd_plugin.evaluation.run import Data, evaluate
from mkd_plugin.evaluation.table import EvaluationTable

__all__ = [
    'FEW',
    'KS',
    'LARS',
    'PROTOCOLS',
    'SGD',
    'SHOTS',
    'TEMPERATURE',
    'Data',
    'EvaluationTable',
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
    'evaluate',
    'few_shot',
    'knn_accuracy',
    'knn_predict',
    'open_images',
    'shortened',
    'train_probes',
]
