"""Measurements of networks, as functions of tensors and accumulators that stream over batches.

``run_watched`` (capture.py) hands a network's attention and tokens, layer by layer, to accumulators:

    attention = PerLayer(lambda name: AttentionStatistics(grid=(14, 14), patch_size=16, flavour='cl-vs-mim', name=name))
    for images in batches:
        run_watched(network, images, on_attention=attention)
    attention.results()['block:11'].distance_H
"""

from mkd_plugin.analysis.attention import AttentionStatistics, attention_nmi, patch_distances
from mkd_plugin.analysis.capture import blocks_of, explicit_attention, run_watched
from mkd_plugin.analysis.curvature import hutchinson_trace, spectral_density, top_eigenpairs
from mkd_plugin.analysis.decisions import ErrorConsistency, ShapeBias, coarse_decisions, coarse_probabilities
from mkd_plugin.analysis.loss_surface import (
    Hessian,
    MeanLoss,
    SymmetricOperator,
    direction_of,
    filter_normalise,
    loss_at,
    loss_landscape,
    random_direction,
)
from mkd_plugin.analysis.similarity import LinearCKA, linear_cka
from mkd_plugin.analysis.spectra import (
    FeatureMapVariance,
    FourierAmplitude,
    ImageSpectrum,
    TokenSpectrum,
    TopRatio,
    token_log_spectrum,
)
from mkd_plugin.analysis.streaming import ImageMean, PerLayer

__all__ = [
    'AttentionStatistics',
    'ErrorConsistency',
    'FeatureMapVariance',
    'FourierAmplitude',
    'Hessian',
    'ImageMean',
    'ImageSpectrum',
    'LinearCKA',
    'MeanLoss',
    'PerLayer',
    'ShapeBias',
    'SymmetricOperator',
    'TokenSpectrum',
    'TopRatio',
    'attention_nmi',
    'blocks_of',
    'coarse_decisions',
    'coarse_probabilities',
    'direction_of',
    'explicit_attention',
    'filter_normalise',
    'hutchinson_trace',
    'linear_cka',
    'loss_at',
    'loss_landscape',
    'patch_distances',
    'random_direction',
    'run_watched',
    'spectral_density',
    'token_log_spectrum',
    'top_eigenpairs',
]
