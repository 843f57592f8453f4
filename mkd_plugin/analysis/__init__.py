"""Measurements of networks, as functions of tensors and accumulators that stream over batches.

``run_watched`` (capture.py) hands a network's attention and tokens, layer by layer, to accumulators:

    attention = PerLayer(lambda name: AttentionStatistics(grid=(14, 14), patch_size=16, flavour='cl-vs-mim', name=name))
    for images in batches:
        run_watched(network, images, on_attention=attention)
    attention.results()['block:11'].distance_H
"""

from mkd_plugin.analysis.attention import (
    AttentionStatistics,
    AttentionSummary,
    attention_distance,
    attention_entropy,
    attention_nmi,
    patch_distances,
)
from mkd_plugin.analysis.capture import blocks_of, explicit_attention, run_watched
from mkd_plugin.analysis.curvature import (
    Eigenpairs,
    SpectralDensity,
    TraceEstimate,
    hutchinson_trace,
    spectral_density,
    top_eigenpairs,
)
from mkd_plugin.analysis.decisions import (
    ErrorConsistency,
    ShapeBias,
    ShapeBiasSummary,
    coarse_decisions,
    coarse_probabilities,
)
from mkd_plugin.analysis.feature_maps import (
    FeatureMapVariance,
    FourierAmplitude,
    FourierSummary,
    feature_map_variance,
    log_amplitude,
)
from mkd_plugin.analysis.hessian import Hessian, SymmetricOperator
from mkd_plugin.analysis.landscape import (
    LossLandscape,
    direction_of,
    filter_normalise,
    loss_at,
    loss_landscape,
    random_direction,
)
from mkd_plugin.analysis.mean_loss import MeanLoss, evaluation_mode
from mkd_plugin.analysis.similarity import LinearCKA, SimilarityTable, linear_cka
from mkd_plugin.analysis.spectrum import (
    ImageSpectrum,
    SpectrumSummary,
    TokenSpectrum,
    TopRatio,
    token_log_spectrum,
    top_ratio,
)
from mkd_plugin.analysis.streaming import Accumulator, ImageMean, PerLayer
from mkd_plugin.analysis.sweeps import finetune, frozen_block_sweep, learning_rate_sweep

__all__ = [
    'Accumulator',
    'AttentionStatistics',
    'AttentionSummary',
    'Eigenpairs',
    'ErrorConsistency',
    'FeatureMapVariance',
    'FourierAmplitude',
    'FourierSummary',
    'Hessian',
    'ImageMean',
    'ImageSpectrum',
    'LinearCKA',
    'LossLandscape',
    'MeanLoss',
    'PerLayer',
    'ShapeBias',
    'ShapeBiasSummary',
    'SimilarityTable',
    'SpectralDensity',
    'SpectrumSummary',
    'SymmetricOperator',
    'TokenSpectrum',
    'TopRatio',
    'TraceEstimate',
    'attention_distance',
    'attention_entropy',
    'attention_nmi',
    'blocks_of',
    'coarse_decisions',
    'coarse_probabilities',
    'direction_of',
    'evaluation_mode',
    'explicit_attention',
    'feature_map_variance',
    'filter_normalise',
    'finetune',
    'frozen_block_sweep',
    'hutchinson_trace',
    'learning_rate_sweep',
    'linear_cka',
    'log_amplitude',
    'loss_at',
    'loss_landscape',
    'patch_distances',
    'random_direction',
    'run_watched',
    'spectral_density',
    'token_log_spectrum',
    'top_eigenpairs',
    'top_ratio',
]
