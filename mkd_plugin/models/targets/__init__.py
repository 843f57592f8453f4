"""Target normalisations, N in the unified view."""

from mkd_plugin.models.targets.normalize import BatchStandardize, L2Normalize, TokenStandardize

__all__ = ['BatchStandardize', 'L2Normalize', 'TokenStandardize']
